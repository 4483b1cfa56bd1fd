"""The notebooks of examples/, run headless with small numbers in their first code cell."""

from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "quickstart": "steps, images = 20, 32",
    "your_own_loop": "steps, batch_size = 40, 32",
    "compare_recipes": 'steps, images, recipes = 20, 32, ("default", "magnitude")',
}

pytestmark = pytest.mark.filterwarnings("default")  # those of Jupyter's own parts


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def run(name: str, folder: Path) -> Any:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL[name]
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    done = client.execute()
    assert "FutureWarning" not in printed(done)
    for output in (output for cell in done.cells for output in cell.get("outputs", ())):
        assert len(output.get("data", {}).get("text/plain", "")) < 2000, "a result is displayed by its fields"
    return done


@pytest.mark.slow
def test_the_loop_cuts_its_model_to_half(tmp_path: Path) -> None:
    text = printed(run("your_own_loop", tmp_path))
    assert "units were removed" in text
    assert "PrunedUNet2DModel" in text


@pytest.mark.slow
def test_the_quickstart_measures_what_it_made(tmp_path: Path) -> None:
    text = printed(run("quickstart", tmp_path))
    assert "SSIM" in text
    assert "TqdmWarning" not in text


@pytest.mark.torture
def test_the_comparison_has_every_recipe(tmp_path: Path) -> None:
    text = printed(run("compare_recipes", tmp_path))
    assert all(f"{recipe}" in text for recipe in ("default", "magnitude"))
    assert text.count("of MACs") == 2


def test_notebooks_stay_small() -> None:
    for path in EXAMPLES.glob("*.ipynb"):
        assert path.stat().st_size < 200_000, path.name
