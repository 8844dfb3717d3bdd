"""tinybert train: the two stages of training."""

from typing import Annotated

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from ..errors import import_extra
from ..training.arguments import RetrievalArguments, SentimentArguments
from .recipes import find_recipe, read_recipe
from .terminal import last_one_counts, log_progress


def apply_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Where a recipe is named, give its values to the flags that are not on the command line."""
    if recipe := arguments["RECIPE"].tokens:
        path = find_recipe(commands[-1], recipe[0].value)
        values = Dict(read_recipe(path), source=str(path), use_commands_as_keys=False)
        values(app, commands, arguments)


def prepare() -> None:
    """What both commands do before torch is imported."""
    log_progress()
    import_extra("datasets", purpose="training")


app = App(
    name="train",
    help="""Train an encoder: sentiment is stage one, retrieval stage two.

    tinybert train sentiment small
    tinybert train retrieval minilm --data pairs.csv

To list the recipes: tinybert recipes.""",
    config=(last_one_counts, apply_recipe),
    sort_key=1,
)

Recipe = Annotated[
    str | None,
    Parameter(
        name="RECIPE",
        help="A recipe's name (see: tinybert recipes), or a YAML file of the flags below, without dashes. A flag on the "
        "command line replaces the recipe's value.",
    ),
]


@app.command(sort_key=1, usage="tinybert train sentiment [RECIPE] [--flags]")
def sentiment(
    recipe: Recipe = None, /, *, arguments: Annotated[SentimentArguments | None, Parameter(name="*")] = None
) -> None:
    """Stage one: train the encoder to classify texts (sentiment), or pairs of texts (natural language inference).

        tinybert train sentiment                   # the full recipe: SST-2 from the Hub, for a GPU
        tinybert train sentiment small             # minutes on a CPU, on the bundled data
        tinybert train sentiment --data reviews.csv --text_columns review --label_column stars

    On several GPUs or machines: accelerate launch train_sentiment.py, with the same arguments.
    """
    prepare()
    from ..training import train_sentiment

    train_sentiment(arguments or SentimentArguments())


@app.command(sort_key=2, usage="tinybert train retrieval [RECIPE] [--flags]")
def retrieval(
    recipe: Recipe = None, /, *, arguments: Annotated[RetrievalArguments | None, Parameter(name="*")] = None
) -> None:
    """Stage two: train the encoder to find the answer to a query. The other answers of its batch are its negatives.

        tinybert train retrieval minilm --data pairs.csv         # the best model per minute of a CPU
        tinybert train retrieval full                            # Natural Questions, after stage one, for a GPU
        tinybert train retrieval minilm --data faq.csv --query_column question --answer_column reply
        tinybert train retrieval minilm --documents notes.jsonl --text_column body       # without queries

    On several GPUs or machines: accelerate launch train_retrieval.py, with the same arguments.
    """
    prepare()
    from ..training import train_retrieval

    train_retrieval(arguments or RetrievalArguments())
