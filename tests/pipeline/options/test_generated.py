"""Files generated from the option models are up to date and describe every key."""

import importlib.util

import pytest

from pipeline.options.base import schema_of
from pipeline.options.config import STEPS, Config
from pipeline.options.flags import leaves
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "config/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_is_up_to_date_with_the_models(generate):
    assert (ROOT / "config/schema.yaml").read_text() == generate.schema()


def test_the_table_of_keys_is_up_to_date_with_the_models(generate):
    page = (ROOT / "config/README.md").read_text()
    assert page == generate.readme(page)
    assert "| `augmentation.rotation` | largest rotation, in degrees, either way |  |" in page
    assert "| `size.height` | pixels | `256` |" in page


def test_an_outdated_key_in_the_table_is_replaced(generate):
    page = (ROOT / "config/README.md").read_text()
    assert generate.readme(page.replace("`resize_mode`", "`mode`")) == page


@pytest.mark.parametrize("step", STEPS)
def test_the_flags_of_a_step_have_unique_names(step):
    names = [path.rsplit(".", 1)[-1] for path, _ in leaves(schema_of(STEPS[step]))]
    assert len(set(names)) == len(names)


def undescribed(model, seen):
    """(model, field) of every field of a model without a description, at every depth."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(kind, "model_fields")]
        for kind in inner:
            if kind not in seen:
                seen.add(kind)
                yield from undescribed(kind, seen)
        if not inner and not field.description:
            yield model.__name__, name


def test_every_key_is_described():
    assert set(undescribed(Config, set())) <= {
        *(("Columns", name) for name in ("url", "path", "label", "split", "group", "sha256")),
        *(("Database", name) for name in ("train", "val")),
    }
