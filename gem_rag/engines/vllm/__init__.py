"""vLLM as an engine: it generates as ever, and embeds on the same weights.

    engine.py      what `load(model, engine="vllm")` gives: one thread drives vLLM's engine
    batching.py    rows that wait to be embedded, and when it is their turn
    arguments.py   vLLM's engine arguments, and models refused before they are loaded
    worker.py      the extension of vLLM's workers, reached by `collective_rpc`
    encoder.py     one embedding pass on vLLM's layers, under the rule of `attention.py`
    adapters.py    the special rows' adapters on vLLM's fused and sharded linear layers
    plugin.py      `/v1/embeddings` in `vllm serve`

`worker`, `encoder` and `adapters` run in vLLM's workers, everything else in the process that
asks. Importing this package imports no vLLM.
"""
