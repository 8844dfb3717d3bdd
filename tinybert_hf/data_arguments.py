"""Where rows are read from, as flags and in Python. It imports neither torch nor `datasets`: `--help` answers at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from .reading import Written

DATA = Parameter(group=Group("Data", sort_key=1))

if TYPE_CHECKING:
    Data = list[str] | Any  # in Python also a `datasets.Dataset`, a pandas frame, or mappings
else:
    Data = list[str]


@Parameter(name="*")
@dataclass(kw_only=True)
class DataArguments:
    """A data set, or several, and how their files are written."""

    data: Annotated[Data, DATA]
    """Hub ids, files or folders, one or several."""
    data_config: Annotated[str | None, DATA] = None
    """Configuration name of a Hub data set."""
    data_split: Annotated[str, DATA] = "train"
    """Split of a Hub data set or a folder."""
    data_revision: Annotated[str | None, DATA] = None
    """Commit, tag or branch of a Hub data set."""
    encoding: Annotated[str | None, DATA] = None
    """Encoding of the files, such as cp1252. By default UTF-8, or what a byte order mark says."""
    separator: Annotated[str | None, DATA] = None
    """Separator of the columns of csv files. By default the one that the header uses: comma, semicolon, tab or |."""

    @property
    def reading(self) -> dict[str, Any]:
        """How `load_data` is to read the data, but for the split."""
        written = Written(self.encoding, self.separator)
        return {"config": self.data_config, "revision": self.data_revision, "written": written}
