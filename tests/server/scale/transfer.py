"""A second SGLang plugin, for the tests: a transfer backend for a prefill and a decode server on one machine.

SGLang's own need a network card's library. This one takes nixl's place: keys, values and metadata go through files of a
folder in shared memory, a file a request. A decode server's requests fail where the prefill server has died.
"""

import ctypes
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

from tests.server.servers import install_plugin

ENV_FOLDER = "LED_TEST_TRANSFER_FOLDER"
REPLACED = "sglang.srt.disaggregation.nixl"


def environment(plugin: Path, folder: Path) -> dict[str, str]:
    """Of both servers."""
    folder.mkdir(parents=True, exist_ok=True)
    return install_plugin(plugin, target="tests.server.scale.transfer:register") | {ENV_FOLDER: str(folder)}


class Module(types.ModuleType):
    """Its classes have the engine's as bases, which a plugin's start must not import yet."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("Nixl"):
            raise AttributeError(name)
        self.__dict__.update(classes())
        return self.__dict__[name]


def register() -> None:
    module = Module(REPLACED)
    module.__path__ = []
    sys.modules[REPLACED] = module


def is_alive(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie's is empty
    except OSError:
        return False


def memory(address: int, num_bytes: int) -> Any:
    return (ctypes.c_char * num_bytes).from_address(address)


def rows_of(addresses: list[int], sizes: list[int], index: int) -> list[tuple[int, int]]:
    """Address and bytes of one row of each buffer."""
    return [(address + index * size, size) for address, size in zip(addresses, sizes, strict=True)]


def take(rows: list[tuple[int, int]]) -> list[bytes]:
    return [bytes(memory(*row)) for row in rows]


def put(rows: list[tuple[int, int]], values: list[bytes]) -> None:
    """As many as both sides have, as SGLang's backends do."""
    for (address, num_bytes), value in zip(rows, values, strict=False):
        assert len(value) == num_bytes, (len(value), num_bytes)
        ctypes.memmove(address, value, num_bytes)


def classes() -> dict[str, type]:
    from sglang.srt.disaggregation.base.conn import KVPoll
    from sglang.srt.disaggregation.fake.conn import FakeKVManager, FakeKVReceiver, FakeKVSender
    from sglang.srt.disaggregation.utils import DisaggregationMode

    folder = Path(os.environ[ENV_FOLDER])
    prefill_pid = folder / "prefill.pid"

    class Peers(dict[str, Any]):
        """What a decode server knows of prefill servers."""

        def get(self, key: str, default: Any = None) -> Any:
            return types.SimpleNamespace(dp_size=1, follow_bootstrap_room=True)

    class NixlKVManager(FakeKVManager):  # type: ignore[misc]
        def __init__(self, args: Any, disaggregation_mode: Any, *others: Any, **more: Any) -> None:
            super().__init__(args, disaggregation_mode, *others, **more)
            self.prefill_info_table = Peers()
            self.attn_tp_rank = 0
            if disaggregation_mode == DisaggregationMode.PREFILL:
                prefill_pid.write_text(str(os.getpid()))

    class NixlKVSender(FakeKVSender):  # type: ignore[misc]
        def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
            super().init(num_kv_indices, aux_index)
            self.num_left, self.aux_index, self.parts = num_kv_indices, aux_index, []

        def send(self, kv_indices: Any, state_indices: Any = None, num_kv_tokens: int | None = None) -> None:
            args = self.kv_mgr.kv_args
            self.parts += [take(rows_of(args.kv_data_ptrs, args.kv_item_lens, int(i))) for i in kv_indices]
            self.num_left -= len(kv_indices)
            if self.num_left <= 0:
                aux = take(rows_of(args.aux_data_ptrs, args.aux_item_lens, self.aux_index))
                file = folder / f"{self.bootstrap_room}.part"
                file.write_bytes(pickle.dumps((self.parts, aux)))
                file.rename(file.with_suffix(".kv"))
                self.has_sent = True

    class NixlKVReceiver(FakeKVReceiver):  # type: ignore[misc]
        def __init__(self, mgr: Any, bootstrap_addr: str, bootstrap_room: int | None = None) -> None:
            super().__init__(mgr, bootstrap_addr, bootstrap_room)
            self.file = folder / f"{bootstrap_room}.kv"
            self.bootstrap_infos: list[Any] = []

        def send_metadata(self, kv_indices: Any, aux_index: int | None = None, *others: Any, **more: Any) -> None:
            self.has_sent_metadata = True
            self.kv_indices, self.aux_index = kv_indices, aux_index

        def poll(self) -> Any:
            if self.conclude_state is not None or not self.has_sent_metadata:
                return super().poll()
            if self.file.exists():
                self._receive()
                self.conclude_state = KVPoll.Success
            elif not is_alive(int(prefill_pid.read_text())):
                self.conclude_state = KVPoll.Failed
            return KVPoll.Transferring if self.conclude_state is None else self.conclude_state

        def _receive(self) -> None:
            parts, aux = pickle.loads(self.file.read_bytes())
            self.file.unlink()
            args = self.kv_mgr.kv_args
            for index, part in zip(self.kv_indices, parts, strict=True):
                put(rows_of(args.kv_data_ptrs, args.kv_item_lens, int(index)), part)
            put(rows_of(args.aux_data_ptrs, args.aux_item_lens, self.aux_index), aux)

        def failure_exception(self) -> None:
            raise ConnectionError("the prefill server has died")

    class NixlKVBootstrapServer:
        def __init__(self, host: str, port: int) -> None:
            """SGLang keeps one beside a prefill server; rooms and folder are all that is needed here."""

    return {kind.__name__: kind for kind in (NixlKVManager, NixlKVSender, NixlKVReceiver, NixlKVBootstrapServer)}
