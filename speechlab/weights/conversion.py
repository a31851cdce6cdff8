"""The conversion that all published systems share: rename the tensors, read the sizes off them.

    state dict ─ rename ─► Weights ─ config ─► configuration ─ finish ─► our state dict

A system's module holds its names and how its sizes follow from the shapes of its tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechlab.errors import UserError
from speechlab.weights.names import MARKS, listed, recognise


class Weights(dict[str, Tensor]):
    """Tensors in float32 under our names."""

    def size(self, name: str, axis: int = 0) -> int:
        return self[name].shape[axis]

    def count(self, prefix: str) -> int:
        """Number of modules in the list of modules `prefix` ("encoder.")."""
        names = (name.removeprefix(prefix) for name in self if name.startswith(prefix))
        return sum(index.isdigit() for index in {name.partition(".")[0] for name in names})


@dataclass(frozen=True)
class Converter:
    """(published state dict, published configuration) -> our configuration, our state dict.

    UserError for tensors of another system, and where a tensor is missing or has an odd shape.
    """

    system: str  # one of `MARKS`
    title: str  # in messages: "a SEMamba"
    rename: Callable[[str], str]  # published name -> our name
    config: Callable[[Weights, Mapping[str, Any]], Any]  # weights, published configuration
    finish: Callable[[Weights], dict[str, Tensor]] = dict

    def __call__(
        self, state: Mapping[str, Tensor], published: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Tensor]]:
        self._check_mark(state)
        wrong = f"these are not the weights of {self.title}"
        try:
            weights = Weights({self.rename(name): x.float() for name, x in state.items()})
            return self.config(weights, published), self.finish(weights)
        except KeyError as error:
            raise UserError(f"{wrong}: no {error}") from error
        except (IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{wrong}: odd tensor shapes") from error

    def _check_mark(self, state: Mapping[str, Tensor]) -> None:
        """UserError, with the file's own names, if no name has the mark of the system."""
        if "layers.0.weight_orig" in state:
            raise UserError("holds a metric discriminator, which is used in training only")
        mark = MARKS[self.system]
        if any(name.startswith(mark) for name in state):
            return
        if other := recognise(state):
            raise UserError(f"these are not the weights of {self.title}: name system {other}")
        names = f"no tensor is named {mark}*; the file's are {listed(state)}"
        advice = "save the model's own state_dict() alone"
        raise UserError(f"these are not the weights of {self.title}: {names}; {advice}")
