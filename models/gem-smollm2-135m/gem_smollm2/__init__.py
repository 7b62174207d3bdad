"""gem-smollm2-135m: SmolLM2-135M-Instruct with GEM embeddings, and how it was trained."""

from pathlib import Path

from gem_rag.core.model_packages import ModelPackage
from gem_smollm2.base import NAME, installed_base

MODEL = ModelPackage(Path(__file__).with_name("adapter"), {NAME: installed_base})
