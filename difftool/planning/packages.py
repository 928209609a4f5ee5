"""Python packages that a model's pipeline needs beyond difftool's own requirements."""

from importlib.util import find_spec

from difftool.errors import PlanError
from difftool.planning.checkpoint import Checkpoint


def check_packages(checkpoint: Checkpoint) -> None:
    """Raises PlanError for the packages of the checkpoint's pipeline that are not installed, before anything loads."""
    missing = {name: line for name, line in checkpoint.pipeline.packages.items() if find_spec(name) is None}
    if missing:
        what, model = " and ".join(missing), checkpoint.model
        verb = "is" if len(missing) == 1 else "are"
        raise PlanError(
            f"{model.name} ({model.pipeline_class}) needs {what}, which {verb} not installed here",
            hint=", then ".join(missing.values()),
        )
