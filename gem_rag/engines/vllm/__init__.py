"""vLLM as an engine: it generates as usual, and embeds on the same weights.

    vllm_engine.py        what `load(model, engine="vllm")` gives
    driver.py             the one thread that owns a vLLM engine and steps it
    embedding_queue.py    rows that are waiting to be embedded, and when it is their turn
    engine_args.py        vLLM's engine arguments, and models rejected before they are loaded
    rpc.py                what is sent to the workers, and what they return
    worker.py             the extension of vLLM's workers, reached by `collective_rpc`
    vllm_encoder.py       one embedding pass on vLLM's layers, in the two halves of `core/halves.py`
    prefill.py            attention of the texts by vLLM's own kernels
    flat_texts.py         texts in vLLM's flat sequence, and in the halves' form
    sharded_adapters.py   adapters on vLLM's fused and sharded linear layers
    async_embedder.py     embeddings from an `AsyncLLM` that somebody else runs
    client_engine.py      an engine for our code in a process where vLLM's own server runs one

`worker`, `vllm_encoder`, `prefill`, `flat_texts` and `sharded_adapters` run in vLLM's workers,
everything else in the calling process. Importing this package does not import vLLM.
"""
