"""How gem-rag's bundled model, gem-tiny, is made: data, training and measurement."""
