"""The notebook `new_dataset`: its parameters, and the table main x auxiliary of your own data."""

from __future__ import annotations

from pydantic import Field, model_validator

from mtrlib.data import example
from mtrlib.studies.parameters import Attack, Study
from mtrlib.studies.study import Cell, table
from mtrlib.tasks import Task


class NewDataset(Study):
    """Parameters of the notebook `new_dataset`: `example` takes the example, of which `write_example` writes the files
    into `root`; `shown` images stand in its figure; `attack` as in `RQ1`."""

    attack_name: Attack = Field(alias="attack")
    example: bool
    shown: int = Field(ge=1, le=8)

    @model_validator(mode="after")
    def _own(self) -> NewDataset:
        if self.example and self.data != "folder":
            raise ValueError(f"example should be false to read your own data, found true for data {self.data!r}")
        return self

    def described(self) -> tuple[str | None, dict[str, Task]]:
        """Of the example as it will be: it may not be written yet."""
        if self.example and self.data == "folder":
            return example.described(self.folder, self.train_images or 256, self.test_images)
        return super().described()

    def write_example(self) -> None:
        """Write the example, where it is asked for."""
        if self.example:
            example.write_example(self.folder, self.train_images or 256, self.test_images)


def cells(p: NewDataset) -> list[Cell]:
    """The table main x auxiliary alone, as panel "table"."""
    return list(table(p, "table", "linf"))
