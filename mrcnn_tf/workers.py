"""The processes that train together as each of them sees it: what they tell one another beside the training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")


class Workers:
    """A process that trains alone. `mrcnn_tf.several_workers.SeveralWorkers` has the same members.

    Attributes:
        index: of this process.
        count: of the processes.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes the run's folder."""
        return self.index == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in any process."""
        return flags

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in their order."""
        return [value]

    def from_chief(self, value: Any) -> Any:
        """The chief's JSON value; what the others give is not looked at."""
        return self.gather(value if self.is_chief else None)[0]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """See that JSON values by names are the same in all processes.

        Raises:
            ClusterError: they are not; names worker and value.
        """

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's stretch of a list that all have; those of all are the list."""
        begin, end = (len(items) * number // self.count for number in (self.index, self.index + 1))
        return items[begin:end]

    def take_over(self, model: Any) -> None:
        """Give all processes the chief's weights and optimizer."""

    def dataset(self, batches: Any, start: int) -> Any:
        """The training batches from number `start` on as `model.fit` takes them; `batches` are a run's."""
        return batches.endless(start)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Tell the others of an error that ends this process; they end, too."""
        yield

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn TensorFlow's error about another process into one that names it.

        Raises:
            ClusterError: another process has ended with an error, or is gone.
        """
        yield


ALONE = Workers()
"""The only process of a run."""
