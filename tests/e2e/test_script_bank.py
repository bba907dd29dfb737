"""Every tool of the script bank, from the catalogue, on its own sample, through the service."""

from pathlib import Path
from typing import Any

import pytest
from script_bank import check_catalogue_entry, read_sample
from service import Client
from steps import START_OVER, action_ids

from app.usecases.seed import SCRIPT_BANK

TOOLS = sorted(path.parent for path in SCRIPT_BANK.glob("*/meta.json"))


@pytest.mark.parametrize("folder", TOOLS, ids=lambda folder: folder.name)
def test_a_tool_runs_on_its_sample_and_offers_the_next_step(anna: Client, folder: Path) -> None:
    meta = check_catalogue_entry(folder.name)
    catalogue = anna.get("/tools", params={"limit": 200}).json()["items"]
    assert meta.title in {tool["title"] for tool in catalogue if tool["slug"] == meta.slug}

    form: dict[str, Any] = {"files": list(read_sample(folder.name).items())}
    inputs = folder / "sample" / "inputs.json"
    if inputs.exists():
        form["inputs"] = inputs.read_text("utf-8")
    # Some take one file, and have a sample of each kind.
    (field,) = [field for field in meta.input_schema if field["kind"] == "file"]
    form["files"] = form["files"][: field.get("max", 20)]
    run = anna.run_tool(meta.slug, **form).json()
    assert run["status"] == "succeeded", run
    payload = run["ui_payload"]
    assert payload["outputs"]
    assert not [output for output in payload["outputs"] if "code" in output], "nothing was cut"
    assert (START_OVER in action_ids(payload)) is (len(action_ids(payload)) > 0)
