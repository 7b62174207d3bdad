"""Training pairs from documents alone: (query, document, negatives).

make.py        the whole way from a folder to a file of pairs and its card
settings.py    every number of it
passages.py    documents to passages, each under its headings
structure.py   queries that documents hold themselves: titles, headings, summaries
questions.py   questions that a language model writes
writing.py     writing them in batches, and going on where it was interrupted
filters.py     queries that say nothing, repeat another, or do not find their passage again
searchers.py   BM25 and the model itself, in one form
negatives.py   passages that look right and are not
card.py        what was made, and of what
"""
