"""MLflow: figures of a developing network as metrics of an MLflow run."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from synaptree.core.errors import OptionError
from synaptree.train.events import Points, Status

if TYPE_CHECKING:
    from mlflow.entities import Run as MLflowRun

__all__ = ["MLflow"]

_NAME = "synaptree.run"
"""Tag by which a run is found again."""

_STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_QUANTILES = {"least": 0, "lower_quartile": 25, "median": 50, "upper_quartile": 75, "most": 100}
_METRICS, _PARAMETERS, _LONGEST = 1000, 100, 6000  # what MLflow takes in one request, and in one value


class MLflow:
    """A tracker that writes to MLflow; opened again under the same names, it goes on in the same run.

    Histograms are kept as five quantiles: NAME/least, lower_quartile, median, upper_quartile, most.

    Args:
        experiment: name of the MLflow experiment; made if it is missing.
        run: name of the run in it.
        uri: of the tracking server or store, as `sqlite:///mlflow.db`; what MLflow is configured for by default.
        fresh: whether to begin a new run of that name; the older one stays.

    Raises:
        OptionError: MLflow is not installed, or nothing answers at `uri`.
    """

    def __init__(self, experiment: str, run: str, uri: str | None = None, *, fresh: bool = False) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise OptionError(f"MLflow is not installed ({error}): pip install 'synaptree[track]'") from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            begun = self._begin(experiment, run, fresh)
        except Exception as error:  # of a URI, a database, a server
            place = uri or "its default place"
            raise OptionError(
                f"MLflow at {place} cannot be used ({error}): give another URI, or start the server"
            ) from error
        self.run_id = begun.info.run_id
        self._known_metrics, self._known_parameters = set(begun.data.metrics), set(begun.data.params)
        self._points = Points(self._steps)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write figures, by name, at a step, in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(values[name]), now, step) for name in self._points.new(values, step)]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + _METRICS])

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Write the quantiles of values of any shape, one at least, at a step."""
        found = np.percentile(values.detach().cpu().numpy(), list(_QUANTILES.values()))
        self.scalars({f"{name}/{key}": float(value) for key, value in zip(_QUANTILES, found, strict=True)}, step)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Write what the network is trained with; the first value of a name counts, and long ones are cut."""
        from mlflow.entities import Param

        new = [Param(name, str(v)[:_LONGEST]) for name, v in values.items() if name not in self._known_parameters]
        self._known_parameters |= set(values)
        for first in range(0, len(new), _PARAMETERS):
            self._client.log_batch(self.run_id, params=new[first : first + _PARAMETERS])

    def close(self, status: Status = "done") -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.run_id, _STATUS[status])

    def _begin(self, experiment: str, run: str, fresh: bool) -> "MLflowRun":
        """Return the newest run of the name, or a new one."""
        known = self._client.get_experiment_by_name(experiment)
        number = str(known.experiment_id if known else self._client.create_experiment(experiment))
        quote = '"' if "'" in run else "'"
        found = [] if fresh else self._client.search_runs(
            [number], f"tags.`{_NAME}` = {quote}{run}{quote}", order_by=["attributes.start_time DESC"], max_results=1
        )
        begun = found[0] if found else self._client.create_run(number, tags={_NAME: run}, run_name=run)
        self._client.update_run(begun.info.run_id, status="RUNNING")
        return begun

    def _steps(self, name: str) -> list[int]:
        if name not in self._known_metrics:
            return []
        return [metric.step for metric in self._client.get_metric_history(self.run_id, name)]

