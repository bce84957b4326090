"""Files of a batch: what a line, an object and a row of a table say, and the names of pictures."""

import io
import json

import pytest

from jaxpa.adapters.spec import Lora
from jaxpa.batch.names import Template, slug
from jaxpa.batch.table import read_table, row_of, table_schema
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Subject
from jaxpa.request.groups import Sampling
from jaxpa.request.request import Request

SAID = Request(
    prompt="a red cat, on a beach",
    sampling=Sampling(seed=7, steps=4),
    subjects=(Subject("car.png", mask="mask.png", at=(0.4, 0.6)),),
)


def rows(file, text):
    file.write_text(text)
    return [row_of(line.said, text=file.suffix == ".csv") for line in read_table(str(file))]


def test_three_spellings_of_one_request(tmp_path):
    nested = {"prompt": SAID.prompt, "sampling": {"seed": 7, "steps": 4}, "out": "a.png",
              "subjects": [{"image": "car.png", "mask": "mask.png", "at": [0.4, 0.6]}]}  # fmt: skip
    flat = {key: value for key, value in nested.items() if key != "sampling"} | {"seed": 7, "steps": 4}
    found = rows(tmp_path / "a.jsonl", f"{json.dumps(nested)}\n\n{json.dumps(flat)}\n")
    found += rows(
        tmp_path / "a.csv",
        "prompt,seed,sampling.steps,out,subjects.0.image,subjects.0.mask,subjects.0.at\n"
        '"a red cat, on a beach",7,4,a.png,car.png,mask.png,"[0.4, 0.6]"\n',
    )
    assert [row.request for row in found] == [SAID] * 3
    assert {row.out for row in found} == {"a.png"}


def test_cells_are_read_by_their_column(tmp_path):
    (row,) = rows(tmp_path / "a.csv", "prompt,tau,soft,guidance,model,negative_prompt\n5,80%,true,3.5,mini,\n")
    assert (row.prompt, row.method.tau[0].share, row.method.soft, row.sampling.guidance) == ("5", 0.8, True, 3.5)
    assert (row.checkpoint.model, row.sampling.negative_prompt) == ("mini", None)


BAD = {
    "another name": ({"prompt": "x", "sed": 3}, "did you mean 'seed'"),
    "a wrong value": ({"prompt": "x", "seed": "three"}, "sampling.seed"),
    "a number that is text": ({"prompt": "x", "seed": "3"}, "sampling.seed"),
    "a value out of range": ({"prompt": "x", "steps": 0}, "steps must be"),
    "twice": ({"prompt": "x", "seed": 3, "sampling": {"seed": 4}}, "seed is given twice"),
    "an unknown group's name": ({"prompt": "x", "subjects": [{"picture": "a.png"}]}, "picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows(name):
    record, said = BAD[name]
    with pytest.raises(JaxpaError, match=said):
        row_of(record)


@pytest.mark.parametrize(("suffix", "text", "said"), [
    (".jsonl", '{"prompt": "x"\n', ":1: not JSON"),
    (".jsonl", "[1]\n", ":1: not a JSON object"),
    (".jsonl", "[" * 100_000 + "\n", ":1: not JSON"),
    (".jsonl", '{"prompt": ' + "[" * 200 + "]" * 200 + "}\n", ":1: not JSON .nested more than 100 deep"),
    (".csv", "prompt\nx,y\n", "more cells"),
    (".csv", "prompt,subjects.1.image\nx,a.png\n", "subjects.1.image"),
    (".csv", 'prompt\nx\n"y\nz\n', ":3: the row that begins here is not CSV .*: does a quote stay open"),
    (".csv", "prompt,seed, prompt\nx,1,y\n", ":1: 'prompt' is given twice"),
    (".csv", "prompt,,\nx,y,\n", ":2: the cell 'y' stands under no name"),
    (".csv", "prompt;seed\nx;1\n", ":1: ';' stands between the names"),
    (".tsv", "prompt,seed\nx,1\n", ":1: ',' stands between the names"),
    (".csv", "prompt,subjects.0\nx,a.png\n", ":2: there is no column 'subjects.0'"),
    (".csv", "prompt,subjects,subjects.0.image\nx,y,a.png\n", ":2: 'subjects.0.image' is given twice"),
    (".csv", 'prompt,sampling,sampling.seed\nx,"{""seed"": 1}",2\n', ":2: 'sampling.seed' is given twice"),
    (".csv", 'prompt,sampling.seed,sampling\nx,2,"{""seed"": 1}"\n', ":2: 'sampling' is given twice"),
    (".csv", 'prompt,sampling\nx,"{""seed"": 1, ""seed"": 2}"\n', ":2: 'seed' is given twice"),
    (".jsonl", '{"prompt": "x", "prompt": "y"}\n', ":1: 'prompt' is given twice"),
    (".jsonl", '{"sampling": {"seed": 1, "seed": 2}}\n', ":1: 'seed' is given twice"),
    (".txt", 'generate --prompt "x', "No closing quotation"),
])  # fmt: skip
def test_bad_files(tmp_path, suffix, text, said):
    file = tmp_path / f"a{suffix}"
    file.write_text(text)
    with pytest.raises(JaxpaError, match=said) as caught:
        read_table(str(file))
    assert len(str(caught.value)) < 1000


def test_a_cell_that_is_no_json_is_text(tmp_path):
    """Whatever it begins with, and however deep that is nested or long: its column decides."""
    (row,) = rows(tmp_path / "a.csv", "prompt\n[red] car\n")
    assert row.prompt == "[red] car"
    with pytest.raises(JaxpaError, match="sigmas"):
        rows(tmp_path / "a.csv", f"prompt,sigmas\nx,{'[' * 100_000}\n")
    with pytest.raises(JaxpaError, match="subjects"):
        rows(tmp_path / "a.csv", f"prompt,subjects.{'9' * 5000}.image\nx,a.png\n")


def test_text_of_another_encoding_says_which_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("prompt\na red cat\n".encode("utf-16"))
    with pytest.raises(JaxpaError, match=r"a\.csv cannot be read: .*: save it as UTF-8"):
        read_table(str(tmp_path / "a.csv"))


def test_stdin_is_read_as_a_file_is(monkeypatch):
    """As UTF-8, whatever the locale, and without the mark that some programs put in front."""
    stream = io.TextIOWrapper(io.BytesIO("\ufeffgenerate --prompt café".encode()), encoding="latin-1")
    monkeypatch.setattr("sys.stdin", stream)
    assert [line.said for line in read_table("-")] == [["generate", "--prompt", "café"]]


def test_the_schema_has_every_name():
    found = table_schema()
    assert {"prompt", "sampling", "seed", "tau", "model", "out", "pad"} <= found["properties"].keys()
    assert found["additionalProperties"] is False


def test_templates():
    line = {"line": 7, "verb": "generate", "prompt": "A red car, on a beach/../x"}
    named = Template("{line:05d}-{prompt}-{seed}.png").names(line, [{"seed": 3}, {"seed": 4}])
    assert named == ["00007-a-red-car-on-a-beach-x-3.png", "00007-a-red-car-on-a-beach-x-4.png"]
    assert slug("???") == "picture"
    for text, said in (("{line}{sed}.png", "did you mean 'seed'"), ("a.png", "names the pictures of all lines alike"),
                       ("{line.__class__}.png", "no {line.__class__}"), ("{line", "expected"),
                       ("{line:0999999999d}.png", "more than 255")):  # fmt: skip
        with pytest.raises(JaxpaError, match=said):
            Template(text)
    with pytest.raises(JaxpaError, match="mask has no seed"):
        Template("{line}-{seed}.png").names({"line": 1, "verb": "mask"}, [{}])


def test_loras_as_the_flag_has_them(tmp_path):
    want = (Lora("a.safetensors", 0.5), Lora("b.safetensors"))
    spellings = (["a.safetensors:0.5", "b.safetensors"], [{"file": "a.safetensors", "scale": 0.5}, "b.safetensors"])
    lines = [json.dumps({"prompt": "a cat", "lora": each}) for each in spellings]
    found = rows(tmp_path / "a.jsonl", "\n".join(lines))
    cells = 'prompt,lora\na cat,"[""a.safetensors:0.5"", ""b.safetensors""]"\na cat,a.safetensors:0.5\n'
    found += rows(tmp_path / "a.csv", cells)
    assert [row.checkpoint.lora for row in found] == [want, want, want, want[:1]]
    for wrong in (3, [3], [""], {"file": "a"}):
        with pytest.raises(JaxpaError, match=r"checkpoint\.lora"):
            row_of({"prompt": "a cat", "lora": wrong})
