"""The self-check sees a hook that SGLang lost, on the real registry, with stand-ins for the hooked functions."""

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from led_sglang.integration.hooks import register, selfcheck
from led_sglang.integration.hooks.guard import Guarded, Handler, call_original
from led_sglang.integration.hooks.table import HOOK_TARGETS, HookTarget

MODULE = "led_selfcheck_stand_in"
PLAIN, METHOD = f"{MODULE}.plain", f"{MODULE}.Engine.method"
TABLE = {
    PLAIN: HookTarget("around", ("a", "b"), "a function", "scheduler.none"),
    METHOD: HookTarget("after", ("self", "x"), "a method", "http.none"),
}


def around_plain(original: Callable[..., Any], a: int, b: int) -> int:
    return int(original(a, b)) + 1


def after_method(result: int, self: Any, x: int) -> int:
    return result + 1


def guarded(target: str, function: Callable[..., Any]) -> Guarded:
    made = Guarded(target, TABLE[target])
    made.handler = Handler(function, lambda target: None, call_original)
    return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module with two hookable functions; the registry is put back afterwards."""
    module = types.ModuleType(MODULE)
    exec(
        "def plain(a, b):\n    return a + b\nclass Engine:\n    def method(self, x):\n        return x\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(selfcheck, "hooks_of", lambda release: TABLE)
    monkeypatch.setattr(
        register, "HANDLERS", {PLAIN: guarded(PLAIN, around_plain), METHOD: guarded(METHOD, after_method)}
    )
    kept = dict(HookRegistry._hooks), set(HookRegistry._patched)
    yield module
    HookRegistry.reset()
    HookRegistry._hooks.update(kept[0])
    HookRegistry._patched.update(kept[1])


def register_ours() -> None:
    for target, spec in TABLE.items():
        HookRegistry.register(target, register.HANDLERS[target], HookType(spec.kind))


def faults() -> dict[str, str | None]:
    return {target: selfcheck.check_hook(target, spec) for target, spec in TABLE.items()}


def test_hooks_in_place_verify(engine: types.ModuleType) -> None:
    register_ours()
    HookRegistry.apply_hooks()
    assert (engine.plain(1, 2), engine.Engine().method(1)) == (4, 2)
    assert faults() == {PLAIN: None, METHOD: None}
    selfcheck.verify("scheduler")
    selfcheck.verify("http")


def test_registered_but_not_applied(engine: types.ModuleType) -> None:
    register_ours()
    assert faults() == {PLAIN: "the hook is not in place", METHOD: "the hook is not in place"}


def test_a_renamed_target_is_gone(engine: types.ModuleType) -> None:
    engine.renamed = engine.__dict__.pop("plain")
    register_ours()
    HookRegistry.apply_hooks()  # logs and swallows the failure
    with pytest.raises(selfcheck.HookError) as caught:
        selfcheck.verify("scheduler")
    for word in (PLAIN, "gone", "LED cannot run on SGLang", "--led disabled"):
        assert word in str(caught.value)
    selfcheck.verify("http")  # the other process' hooks are none of its business


def test_a_missing_module_is_gone() -> None:
    fault = selfcheck.check_hook("led_no_such_module.f", HookTarget("before", (), "", ""))
    assert fault is not None
    assert "gone" in fault


@pytest.mark.parametrize("source", ["def plain(a, c): pass", "def plain(b, a): pass", "def plain(a, b, *, c=1): pass"])
def test_a_changed_signature_is_reported(engine: types.ModuleType, source: str) -> None:
    exec(source, engine.__dict__)
    register_ours()
    HookRegistry.apply_hooks()
    fault = faults()[PLAIN]
    assert fault is not None
    assert "expected parameters (a, b), found (" in fault


def test_replaced_after_the_hooks_were_applied(engine: types.ModuleType) -> None:
    register_ours()
    HookRegistry.apply_hooks()
    engine.plain = lambda a, b: 0
    assert faults()[PLAIN] == "the hook is not in place"


def test_another_function_of_the_same_name_is_not_ours(engine: types.ModuleType) -> None:
    HookRegistry.register(PLAIN, lambda original, a, b: original(a, b), HookType.AROUND)
    HookRegistry.apply_hooks()
    assert faults()[PLAIN] == "the hook is not in place"


KINDS: dict[HookType, Callable[..., Any]] = {
    HookType.BEFORE: lambda *args: None,
    HookType.AFTER: lambda result, *args: None,
    HookType.AROUND: lambda original, *args: original(*args),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_inside", [True, False])
def test_another_plugins_hook_around_or_inside_ours(engine: types.ModuleType, kind: HookType, is_inside: bool) -> None:
    theirs = KINDS[kind]
    if is_inside:
        HookRegistry.register(PLAIN, theirs, kind)
    register_ours()
    if not is_inside:
        HookRegistry.register(PLAIN, theirs, kind)
    HookRegistry.apply_hooks()
    assert engine.plain(1, 2) == 4
    assert faults()[PLAIN] is None


def test_every_target_has_a_handler_with_the_parameters_its_kind_needs() -> None:
    assert set(register.HANDLERS) == set(HOOK_TARGETS)
    extra = {"before": 0, "after": 1, "around": 1}  # the result, or the original function
    for target, spec in HOOK_TARGETS.items():
        parameters = inspect.signature(register.HANDLERS[target].handler.function).parameters
        assert len(parameters) == len(spec.parameters) + extra[spec.kind], target
        assert tuple(parameters)[extra[spec.kind] :][1:] == spec.parameters[1:], target


@pytest.mark.parametrize("found", ["0.5.17", "0.5.23", "0.5.23.post1", "0.5.99", "0.5.24rc1"])
def test_supported_releases(found: str) -> None:
    selfcheck.verify_release(found)


@pytest.mark.parametrize("found", ["0.4.6", "0.5.16", "0.5.16.post2", "0.6.0", "1.0", "unknown"])
def test_unsupported_releases_are_named(found: str) -> None:
    with pytest.raises(selfcheck.HookError, match=rf"SGLang {found}: .*0\.5\.17.*0\.6"):
        selfcheck.verify_release(found)


def test_another_plugins_sampler_in_the_place_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hook on create_sampler is outside of ours and does not call the original: LED would never run."""
    monkeypatch.setattr(selfcheck, "verify", lambda process: None)
    runner = types.SimpleNamespace(sampler=object(), is_draft_worker=False)
    with pytest.raises(selfcheck.HookError, match="sampler is not in place"):
        register.HANDLERS["sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends"](runner)
