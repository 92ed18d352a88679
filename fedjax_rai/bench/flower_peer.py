"""A federated round by Flower's simulation: its FedAvg, its messages, its Ray backend; clients train as torch's peer.

python -m fedjax_rai.bench.flower_peer, by the Python of an environment that has flwr[simulation], torch and PEFT.
One client computes at a time, with all cores or the GPU; its process keeps the base from round to round.
"""

import json
import os
import threading
from functools import lru_cache
from importlib import import_module
from queue import Queue
from typing import Any

from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.bench.shapes import RoundShape
from fedjax_rai.bench.torch_peer import about, adapted_model, device, random_batches, train, trained_parameters
from fedjax_rai.memory import measured

HELD = "host-memory"  # a client's metric


class Federation:
    """A simulation that does a round when it is asked for one; the simulation itself must have the main thread."""

    def __init__(self) -> None:
        self._requests: Queue[dict[str, Any] | None] = Queue()
        self._asked: Queue[bool] = Queue()
        self._done: Queue[BaseException | None] = Queue()
        self._client_memory = 0

    def prepare(self, request: dict[str, Any]) -> Prepared:
        """A round of the request, for `serve`."""
        import flwr  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]

        self._requests.put(request)
        versions = f"flwr {flwr.__version__}, torch {torch.__version__}"
        return Prepared(self._round, lambda: about(versions), self._end)

    def _round(self) -> None:
        self._asked.put(True)
        failed = self._done.get()
        if failed is not None:
            raise failed

    def _end(self) -> dict[str, Any]:
        """Memory of this process and of the one that is all clients; the simulation ends."""
        self.stop()
        return {"host_memory": measured.process_peak() + self._client_memory}

    def stop(self) -> None:
        """Let the simulation end, whether it has begun or not."""
        self._asked.put(False)
        self._requests.put(None)

    def simulate(self) -> None:
        """Run the simulation until it is to end."""
        from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
        from flwr.serverapp import ServerApp  # pyright: ignore[reportMissingImports]
        from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]

        request = self._requests.get()
        if request is None:
            return
        server = ServerApp()
        client = ClientApp()
        client.train()(train_client)
        server.main()(lambda grid, context: self._serve(grid, request))
        resources = {"num_cpus": os.cpu_count() or 1, "num_gpus": 1 if device() == "cuda" else 0}
        backend = {"client_resources": resources, "init_args": {"include_dashboard": False}}
        try:
            run_simulation(server, client, num_supernodes=request["shape"]["clients"], backend_config=backend)
        except BaseException as error:
            self._done.put(error)
            raise

    def _serve(self, grid: Any, request: dict[str, Any]) -> None:
        """The server: a round by FedAvg for each that is asked for."""
        from flwr.app import ArrayRecord, ConfigRecord  # pyright: ignore[reportMissingImports]
        from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]

        clients = request["shape"]["clients"]
        options = {"min_train_nodes": clients, "min_available_nodes": clients, "min_evaluate_nodes": 0}
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, **options)
        arrays = ArrayRecord(numpy_ndarrays=[leaf.detach().cpu().numpy() for leaf in _client(json.dumps(request))[1]])
        config = ConfigRecord({"request": json.dumps(request)})
        while self._asked.get():
            result = strategy.start(grid, arrays, num_rounds=1, train_config=config)
            metrics = result.train_metrics_clientapp
            if not metrics:
                self._done.put(RuntimeError("no client of Flower's sent a result; what they say stands above"))
                return
            self._client_memory = int(metrics[1][HELD])
            self._done.put(None)


@lru_cache
def _client(request: str) -> tuple[Any, list[Any], Any]:
    """(model, parameters of its adapter, batches) of all clients, once a process."""
    asked = json.loads(request)
    model = adapted_model(asked)
    return model, trained_parameters(model), random_batches(model, RoundShape(**asked["shape"]))


def train_client(message: Any, context: Any) -> Any:
    """A client's round: from the adapter in the message to the one that it sends."""
    import torch  # pyright: ignore[reportMissingImports]
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]

    model, adapter, batches = _client(message.content["config"]["request"])
    received = [torch.from_numpy(leaf.copy()).to(device()) for leaf in message.content["arrays"].to_numpy_ndarrays()]
    with torch.no_grad():
        torch._foreach_copy_(adapter, received)
    train(model, adapter, batches)
    sent = ArrayRecord(numpy_ndarrays=[leaf.detach().cpu().numpy() for leaf in adapter])
    metrics = MetricRecord({"num-examples": batches.shape[0] * batches.shape[1], HELD: measured.process_peak()})
    return Message(content=RecordDict({"arrays": sent, "metrics": metrics}), reply_to=message)


def main() -> None:
    """Answer on standard input and output while the simulation has the main thread."""
    federation = Federation()

    def answer() -> None:
        try:
            serve(federation.prepare)
        finally:
            federation.stop()

    threading.Thread(target=answer, daemon=True).start()
    federation.simulate()


if __name__ == "__main__":
    import_module("fedjax_rai.bench.flower_peer").main()  # by this name clients find what they run
