"""Every YAML file composes, and every choice builds the object it names."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from tyr.config import as_folder
from tyr.hints import explain, groups
from tyr.run import CONFIG_DIR, build, build_method
from tyr.search.economy import Economy

GROUPS = groups(CONFIG_DIR)
# Composed with a value for what the user must give, so that resolving does not stop there.
GIVEN = {"model=local": ["model.path=DIR"], "data=text": ["data.path=FILE"]}
# Groups with a file that sets keys of other groups.
GLOBAL = {
    path.parent.name
    for path in CONFIG_DIR.glob("*/*.yaml")
    if "@package _global_" in path.read_text(encoding="utf-8")
}


@cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line, composed once (that takes a quarter of a second)."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config, True)
    return config


def with_choice(group: str, choice: str) -> DictConfig:
    """A configuration with this choice.

    Choices that touch their own group only are composed together, the n-th of every such group:
    six compositions instead of sixty.
    """
    if group in GLOBAL:
        return composed(f"{group}={choice}", *GIVEN.get(f"{group}={choice}", []))
    place = choices(group).index(choice)
    local = [(name, found) for name, found in GROUPS.items() if name not in GLOBAL]
    words = [f"{name}={found[place % len(found)]}" for name, found in local]
    given = [value for word in words for value in GIVEN.get(word, [])]
    return composed("run_dir=DIR", *words, *given)


def choices(group: str) -> list[str]:
    """Choices of a group; fails when there are none, so a test cannot quietly cover nothing."""
    found = GROUPS[group]
    assert found, f"conf/{group} is empty"
    return found


ALL_CHOICES = [(group, choice) for group in GROUPS for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), ALL_CHOICES, ids=lambda value: str(value))
def test_every_choice_composes_and_resolves(group: str, choice: str) -> None:
    if group == "launcher" and choice != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{choice}_launcher", reason="extra: sweep")
    config = with_choice(group, choice)
    assert config.hydra.runtime.choices[group] == choice
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    assert OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_builds_its_method(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    method = build_method(config)
    assert method.iterations == config.iterations


METHOD_GROUPS = ["criterion", "target", "accumulation", "objective", "pruner", "finish", "export"]
SEARCH_GROUPS = ["start", "surrogate", "racing", "samples", "archive"]


@pytest.mark.parametrize("group", [*METHOD_GROUPS, *SEARCH_GROUPS])
def test_every_choice_of_a_method_group_builds(group: str) -> None:
    for choice in choices(group):
        build_method(with_choice(group, choice))


@pytest.mark.parametrize("model", choices("model"))
def test_every_model_builds_a_source_with_a_name(model: str) -> None:
    assert build(with_choice("model", model).model, "model").name


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_every_callback_builds(group: str) -> None:
    from tyr.events import Callback

    for choice in choices(group):
        nodes: dict[str, Any] = with_choice(group, choice)[group]
        for name, node in nodes.items():
            assert isinstance(build(node, name), Callback)


def test_the_defaults_are_the_papers_settings() -> None:
    config = composed("model=llama31_8b", "data=fineweb_edu")
    search = config.search
    assert (config.iterations, search.generations, search.offspring) == (4, 50, 128)
    assert [list(stage) for stage in search.stages] == [[2048, 16], [16384, 4], [131072, 1]]
    assert (config.pruner.attention_group, config.pruner.ffn_group) == (1, 16)
    assert (config.supernet.interval, config.supernet.levels) == (0.125, 9)
    assert (config.data.calibration_tokens, config.data.sequence_length) == (4194304, 4096)


def test_the_options_that_save_tokens_are_off_unless_asked_for() -> None:
    paper, fast = (
        build_method(composed(*words)).search.economy for words in ([], ["experiment=fast"])
    )
    assert paper.remembers is False
    for part in SEARCH_GROUPS:
        default, chosen = (type(getattr(economy, part)) for economy in (paper, fast))
        assert default is type(getattr(Economy(), part))
        assert chosen is not default


def test_the_command_line_wins_over_the_models_schedule() -> None:
    config = composed("model=tiny", "search.generations=3", "iterations=1")
    assert (config.search.generations, config.iterations) == (3, 1)


def test_nested_groups_keep_short_names() -> None:
    config = composed("accumulation=uniform", "criterion=magnitude", "objective=perplexity")
    assert config.supernet.accumulation._target_.endswith("UniformAccumulation")
    assert config.pruner.criterion._target_.endswith("Magnitude")
    assert config.search.objective._target_.endswith("Perplexity")


def test_jobs_of_a_sweep_get_folders_that_file_systems_take() -> None:
    assert as_folder("criterion=taylor,seed=1") == "criterion=taylor,seed=1"
    assert as_folder("data.path=/a/b") == "data.path=_a_b"
    many = [",".join(f"search.setting{i}={n}" for i in range(30)) for n in range(2)]
    names = [as_folder(words) for words in many]
    assert len(set(names)) == 2
    assert all(len(name) <= 200 for name in names)


def test_a_launcher_that_is_not_installed_is_named_with_its_extra() -> None:
    error = MissingConfigException(
        "Could not find 'hydra/launcher/joblib'", "hydra/launcher/joblib"
    )
    said = explain(error, CONFIG_DIR)
    assert said == "launcher=joblib needs: pip install -e '.[sweep]'"
