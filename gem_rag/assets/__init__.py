"""The model that comes with gem-rag."""

from pathlib import Path

from gem_rag.core.model_packages import ModelPackage

GEM_TINY = ModelPackage(Path(__file__).with_name("gem-tiny"))
