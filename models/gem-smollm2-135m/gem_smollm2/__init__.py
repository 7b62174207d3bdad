"""How SmolLM2-135M-Instruct becomes a GEM model: `python -m gem_smollm2`."""
