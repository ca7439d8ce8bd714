"""What lm-eval says about our models is what a direct computation says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.evaluate.task_files import MAKERS, pair, write_rows, write_task_files
from tests.model_zoo import PATTERNS, VOCABULARY, structures_from, tiny_tokenizer, zoo_decoder
from tests.tolerance import FLOAT64, assert_close
from tyr.errors import ConfigError, DataError, ModelError
from tyr.evaluate import harness as harness_module
from tyr.evaluate.__main__ import load
from tyr.evaluate.harness import Harness, check_lengths, tasks_in
from tyr.evaluate.local_tasks import choose_tasks, find_tasks, write_tasks
from tyr.evaluate.questions import FileTasks
from tyr.evaluate.task_evaluator import StockModel
from tyr.events import TaskScore
from tyr.export.checkpoint import export_checkpoint
from tyr.model.decoder import Decoder, PrunedDecoder

pytest.importorskip("lm_eval", reason="extra: eval")
# Importing lm-eval and compiling its templates take a tenth of the time of the fast tests.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("templates")]

SHARED = Path(__file__).resolve().parents[3] / "shared"
ALL_TASKS = ("arc_easy", "openbookqa", "winogrande", "hellaswag", "blimp")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def llama() -> Decoder:
    return zoo_decoder("llama")


def ask(folder: Path, model: Any, tokenizer: Any, *tasks: str, **settings: Any) -> Any:
    """Scores on task files."""
    return Harness(FileTasks(folder, tasks or None), **settings).scores(model, tokenizer)


@pytest.fixture(scope="module")
def llama_scores(folder: Path, llama: Decoder, templates: None) -> Any:
    """Scores of the dense model on all rows."""
    return ask(folder, llama.model, llama.tokenizer)


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


class Silent:
    """Finds every token equally likely, so the shortest choice is the likeliest."""

    head = torch.zeros(VOCABULARY, 4)

    def final_hidden(self, tokens: Tensor) -> Tensor:
        return torch.ones(*tokens.shape, 4)


def test_a_model_that_knows_nothing_takes_the_shortest_choice(folder: Path, llama: Decoder) -> None:
    rows = rows_of(folder, "arc_easy")
    hits = []
    for row in rows:
        lengths = [len(choice.split()) for choice in row["choices"]]
        hits.append(lengths.index(min(lengths)) == row["gold"])
    value = sum(hits) / len(hits)
    stock = StockModel(Silent(), llama.config)
    scores = ask(folder, stock, llama.tokenizer, "arc_easy", "winogrande")
    arc = scores["arc_easy"]
    assert arc.value == value
    assert 0 < value < 1
    expected = (value * (1 - value) / (len(hits) - 1)) ** 0.5
    assert_close(arc.stderr, expected, tolerance=FLOAT64)
    assert (arc.metric, arc.examples, arc.chance) == ("acc", 12, 0.25)
    assert scores["winogrande"].chance == 0.5
    assert list(scores) == ["arc_easy", "winogrande"]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3_tied"])
def test_a_pruned_model_scores_the_same_in_memory_and_exported(
    name: str, folder: Path, tmp_path: Path
) -> None:
    decoder = zoo_decoder(name)
    structures = structures_from(decoder, PATTERNS["uneven"])
    in_memory = StockModel(PrunedDecoder(decoder, structures.__getitem__), decoder.config)
    export_checkpoint(decoder, structures.__getitem__, tmp_path / "model", provenance={})
    before = ask(folder, in_memory, decoder.tokenizer, limit=4)
    assert before == ask(folder, *load(str(tmp_path / "model"), CPU), limit=4)
    dense = ask(folder, StockModel(decoder, decoder.config), decoder.tokenizer, limit=4)
    assert dense == ask(folder, decoder.model, decoder.tokenizer, limit=4)
    assert dense != before, "pruning changed nothing, so the test shows nothing"
    assert set(before) == set(ALL_TASKS)


def direct_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of pairs whose good sentence is likelier, one sentence at a time."""
    return sum(
        log_probability(model, tokenizer, row["sentence_good"])
        > log_probability(model, tokenizer, row["sentence_bad"])
        for row in rows
    ) / len(rows)


@torch.no_grad()
def log_probability(model: Any, tokenizer: Any, sentence: str) -> float:
    """Sum over the tokens of a sentence, after the token that begins every text."""
    ids = [tokenizer.bos_token_id, *tokenizer.encode(sentence, add_special_tokens=False)]
    log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probabilities[i, token]) for i, token in enumerate(ids[1:]))


def test_blimp_is_a_comparison_of_summed_log_probabilities(llama: Decoder, tmp_path: Path) -> None:
    import random

    rng = random.Random(0)
    files = {name: [pair(rng) for _ in range(count)] for name, count in (("a", 40), ("b", 40))}
    for name, rows in files.items():
        write_rows(tmp_path / "blimp" / f"{name}.jsonl", rows)
    model, tokenizer = llama.model, llama.tokenizer
    scores = ask(tmp_path, model, tokenizer, "blimp_a", "blimp_b")
    direct = {name: direct_accuracy(model, tokenizer, rows) for name, rows in files.items()}
    assert {name: score.value for name, score in scores.items()} == {
        "blimp_a": direct["a"],
        "blimp_b": direct["b"],
    }
    together = ask(tmp_path, model, tokenizer, "blimp")["blimp"]
    assert_close(together.value, (direct["a"] + direct["b"]) / 2)
    assert (together.examples, together.chance) == (80, 0.5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not on this machine")
def test_blimp_of_a_trained_model_is_a_comparison_of_summed_log_probabilities() -> None:
    model, tokenizer = load(str(SHARED / "models" / "stories260K"), CPU)
    limit = 50
    tasks = ("blimp_anaphor_number_agreement", "blimp_wh_questions_subject_gap")
    scores = ask(SHARED / "data", model, tokenizer, *tasks, limit=limit)
    for name, score in scores.items():
        rows = rows_of(SHARED / "data" / "blimp", name.removeprefix("blimp_"))[:limit]
        assert score.value == direct_accuracy(model, tokenizer, rows), name
        assert score.examples == limit
    assert scores[tasks[0]].value > 0.6, "a trained model knows some grammar"


def generated(folder: Path, directory: Path) -> Any:
    """lm-eval's index of the task files."""
    found = find_tasks(folder)
    write_tasks(choose_tasks(found, None), found, directory)
    return tasks_in(directory)


def test_lm_eval_itself_gives_the_same_from_an_exported_directory(
    folder: Path, llama: Decoder, tmp_path: Path
) -> None:
    import lm_eval

    structures = structures_from(llama, PATTERNS["uneven"])
    export_checkpoint(llama, structures.__getitem__, tmp_path / "model", provenance={})
    results = lm_eval.simple_evaluate(
        "hf",
        {"pretrained": str(tmp_path / "model"), "dtype": "float32", "trust_remote_code": True},
        tasks=list(ALL_TASKS),
        task_manager=generated(folder, tmp_path),
        device="cpu",
        batch_size=1,
    )
    ours = ask(folder, *load(str(tmp_path / "model"), CPU))
    assert results is not None
    for name, score in ours.items():
        assert results["results"][name]["acc,none"] == score.value
        assert results["results"][name]["acc_stderr,none"] == score.stderr


@pytest.mark.parametrize("where", ["generated", "shared"])
def test_hellaswag_is_cleaned_as_lm_eval_cleans_it(
    where: str, folder: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from lm_eval.tasks.hellaswag.utils import process_docs

    if where == "shared" and not SHARED.is_dir():
        pytest.skip("../shared is not on this machine")
    files = SHARED / "data" if where == "shared" else folder
    task = generated(files, tmp_path).load(["hellaswag"])["tasks"]["hellaswag"]
    docs = list(task.eval_docs)
    assert docs
    for doc, expected in zip(docs, process_docs(Dataset.from_list(docs)), strict=True):
        assert task.doc_to_text(doc) == expected["query"]
        assert task.doc_to_choice(doc) == expected["choices"]
        assert int(task.doc_to_target(doc)) == expected["gold"]


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("arc_easy", {"query": "Question: Why?"}, "Question: Why?\nAnswer:"),
        ("piqa", {"query": "Question: How?\n"}, "Question: How?\nAnswer:"),
        (
            "boolq",
            {"query": "Passage: P\nQuestion: is it?"},
            "P\nQuestion: is it?\nAnswer:",
        ),
        ("openbookqa", {"query": "The sky is"}, "The sky is"),
    ],
)
def test_prompts_are_those_of_lm_eval(
    name: str, row: dict[str, Any], prompt: str, tmp_path: Path
) -> None:
    rows = [{**row, "choices": ["no", "yes"], "gold": 1}] * 2
    write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
    task = generated(tmp_path / "data", tmp_path).load([name])["tasks"][name]
    [doc, _] = task.eval_docs
    assert task.doc_to_text(doc) == prompt
    assert task.doc_to_choice(doc) == ["no", "yes"]
    assert task.doc_to_target(doc) == 1


@pytest.mark.parametrize("batch_tokens", [1, 20, 100_000])
def test_scores_do_not_depend_on_the_batches(
    batch_tokens: int, folder: Path, llama: Decoder, llama_scores: Any
) -> None:
    sizes: list[int] = []

    class Counting(StockModel):
        def __call__(self, tokens: Tensor) -> Any:
            sizes.append(tokens.numel())
            return super().__call__(tokens)

    scores = ask(folder, Counting(llama, llama.config), llama.tokenizer, batch_tokens=batch_tokens)
    assert scores == llama_scores
    longest = 12
    assert max(sizes) <= max(batch_tokens, longest), "one request is the smallest batch"


def test_a_limit_takes_the_first_examples(folder: Path, llama: Decoder, tmp_path: Path) -> None:
    for name in MAKERS:
        write_rows(tmp_path / f"{name}.jsonl", rows_of(folder, name)[:5])
    limited = ask(folder, llama.model, llama.tokenizer, limit=5)
    assert limited == ask(tmp_path, llama.model, llama.tokenizer)
    assert {name: score.examples for name, score in limited.items()} == {
        **dict.fromkeys(ALL_TASKS, 5),
        "blimp": 10,
    }


def test_normalised_accuracy_is_taken_where_it_makes_sense(folder: Path, llama: Decoder) -> None:
    scores = ask(folder, llama.model, llama.tokenizer, metric="acc_norm")
    metrics = {name: score.metric for name, score in scores.items()}
    assert metrics == {
        **dict.fromkeys(ALL_TASKS, "acc"),
        **dict.fromkeys(["arc_easy", "openbookqa", "hellaswag"], "acc_norm"),
    }


def test_the_tokenizer_is_left_as_it_is(folder: Path, llama: Decoder) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    before = repr(tokenizer)
    ask(folder, llama.model, tokenizer, "openbookqa")
    assert repr(tokenizer) == before


def test_nothing_is_printed_and_the_libraries_speak_again_afterwards(
    folder: Path, llama: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.api import task

    library, bar = logging.getLogger("lm_eval"), task.tqdm
    level = library.level
    ask(folder, llama.model, llama.tokenizer, "blimp")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert (library.level, task.tqdm) == (level, bar)


def test_an_answer_beyond_the_context_is_refused_with_its_task(folder: Path) -> None:
    short = zoo_decoder("mistral", max_position_embeddings=3)
    with pytest.raises(DataError, match=r"answer of task arc_easy has 4 tokens but.* context is 3"):
        ask(folder, short.model, short.tokenizer, "arc_easy")


def test_prompts_beyond_the_context_are_counted_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = zoo_decoder("mistral", max_position_embeddings=6)
    harness = Harness(FileTasks(folder, ["blimp_islands", "openbookqa"]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            harness.scores(short.model, short.tokenizer)
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("openbookqa: ")
    assert "of 48 requests are longer than the context of 6 tokens" in message


def test_lengths_are_counted_to_the_token() -> None:
    # The last token of an answer is predicted, never read: context + 1 tokens fit.
    lengths = [(1, 4), (2, 4), (4, 1), (5, 1)]
    assert check_lengths(["a", "a", "b", "b"], lengths, 4) == {"a": 1, "b": 1}
    with pytest.raises(DataError, match="task c has 5 tokens"):
        check_lengths(["c"], [(1, 5)], 4)


@pytest.mark.parametrize("missing", ["lm_eval", "accelerate"])
def test_a_missing_lm_eval_is_refused_before_any_work(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_module, "find_spec", lambda name: None if name == missing else name)
    install = rf"need {missing}, which is not installed: `pip install -e '.\[eval\]'`"
    with pytest.raises(ConfigError, match=install):
        FileTasks(folder, None)


def test_a_tokenizer_that_cannot_begin_a_text_is_refused(folder: Path, llama: Decoder) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="neither a BOS nor an EOS token"):
        ask(folder, llama.model, tokenizer, "arc_easy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 1}, "limit must be at least 2 examples per task, or null"),
        ({"limit": 0.5}, "limit must be at least 2 .* got 0.5"),
        ({"limit": "all"}, "limit must be at least 2 .* got all"),
        ({"metric": "acc_nrom"}, r"metric must be acc or acc_norm, got acc_nrom"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    settings: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Harness(FileTasks(folder, None), **settings)


def test_a_task_that_counts_something_else_is_refused(
    llama: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    class Rolling:
        def aggregation(self) -> dict[str, Any]:
            return {"word_perplexity": None}

    class Tasks:
        names = ("wikitext",)

        def load(self) -> Any:
            return nullcontext({"tasks": {"wikitext": Rolling()}})

    with pytest.raises(ConfigError, match="task wikitext reports no accuracy"):
        Harness(Tasks()).scores(llama.model, llama.tokenizer)


def test_a_score_survives_json() -> None:
    score = TaskScore("acc", 0.25, 0.1, 4, 0.5)
    assert TaskScore(**json.loads(json.dumps(vars(score)))) == score
