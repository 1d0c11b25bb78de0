"""The commands and their options. What needs torch is imported within them, so that `--help` stays quick."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from synaptree import __version__
from synaptree.core.errors import DataError, OptionError, SynaptreeError
from synaptree.format.errors import FormatError
from synaptree.runtime.errors import EngineError

__all__ = ["app"]


class Commands(TyperGroup):
    """The commands of synaptree, which end in one sentence on bad input."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; exit with 2 if it cannot work with what it was given."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has seen enough
            raise
        except (SynaptreeError, FormatError, EngineError, OSError) as error:
            typer.echo("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Grow, prune and run sparse neural networks, as the brain does.",
)  # fmt: skip

LARGEST_SEED = 2**63 - 1  # as in train.zoo, which torch would come with

DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Where the data sets lie.", show_default="$SYNAPTREE_DATA, or ./data")
]
AllRounds = Annotated[bool, typer.Option("--all-rounds", help="Every round in the table, not only the telling ones.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"synaptree {__version__}")
        raise typer.Exit


@app.callback()
def _synaptree(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
    imports: Annotated[
        list[Path] | None, typer.Option("--import", metavar="FILE.py", help="A file with a method of your own.")
    ] = None,
) -> None:
    for file in imports or ():
        from synaptree.cli.imports import import_file

        import_file(file)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one under recipes/.", metavar="RECIPE")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, as dense.epochs=5.")
    ] = None,
    data: DataFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="Where networks and results go.", show_default="runs/<method>/<recipe>")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=LARGEST_SEED, help="A seed to run, in place of the recipe's own."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Copy the result files there as well.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do again what is done, and start over.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; there must be something to go on from.")] = False,
    every: Annotated[
        float, typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="Lose at most that much to a crash.")
    ] = 60.0,
    all_rounds: AllRounds = False,
    track: Annotated[
        list[str] | None, typer.Option(metavar="TRACKER", help="Figures go to tensorboard[:DIR] or mlflow[:URI] too.")
    ] = None,
) -> None:
    """Run a recipe: its method and controls, for every seed.

    What is done already is not done again, and what was stopped or killed goes
    on where it was, --resume or not.
    """
    from synaptree.cli.run import carry_out
    from synaptree.recipe import find_recipe, load_recipe
    from synaptree.train import together

    loaded = load_recipe(find_recipe(recipe), changes or ())
    with together.joined():
        carry_out(
            loaded, out or Path("runs") / loaded.method / loaded.name, data=data, seeds=seeds, record=record,
            fresh=fresh, resume=resume, every=every, all_rounds=all_rounds, track=track or (),
        )  # fmt: skip


@app.command()
def sweep(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one under recipes/.", metavar="RECIPE")],
    space: Annotated[Path, typer.Option(metavar="SPACE.toml", help="The values to try, key by key.")],
    data: DataFolder = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where networks and results go; shared by a cluster.", show_default="runs/<method>/<recipe>"),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", "--seeds", min=0, max=LARGEST_SEED, help="A seed, in place of the recipe's own."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Points to draw.", show_default="as the space says")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time.", show_default="as many as there are CPUs for")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster; or auto.", show_default="this machine")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Copy the result files there as well.")] = None,
    every: Annotated[
        float, typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="Lose at most that much to a crash.")
    ] = 60.0,
) -> None:
    """Try values of a recipe through Ray Tune, and choose by validation.

    What is done already is not done again, what was stopped or lost its worker
    goes on from its checkpoint. Controls are left to `run`.
    """
    from synaptree.cli.sweep import carry_out_sweep

    carry_out_sweep(
        recipe, space, out, data=data, seeds=seeds, samples=samples, parallel=parallel, address=address, record=record,
        every=every, imports=context.parent.params["imports"] or () if context.parent else (),
    )  # fmt: skip


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Show the card of this one.")] = None) -> None:
    """List the methods, or show one with its options."""
    from synaptree.cli.show import show_method, show_methods

    show_methods() if name is None else show_method(name)


@app.command()
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in my_rule.")],
    folder: Annotated[Path, typer.Option("--in", help="A folder of yours, or a checkout of synaptree.")] = Path(),
) -> None:
    """Write the file, recipe, golden edit and test of a new method, which run as they are and wait to be changed."""
    from synaptree.cli.new_method import write_method

    for path in write_method(name, folder):
        typer.echo(path)


@app.command()
def models() -> None:
    """List the networks of the zoo."""
    from synaptree.cli.show import show_models

    show_models()


@app.command()
def data(
    action: Annotated[Literal["list", "verify", "download"], typer.Argument(help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(help="Of one data set.", show_default="all")] = None,
    root: DataFolder = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="A folder to download from instead.")] = None,
) -> None:
    """List, verify or download data sets."""
    from synaptree.cli.show import download_data, show_data, verify_data

    if mirror is not None and action != "download":
        raise OptionError(f"--mirror is for `data download`, not for `data {action}`")
    match action:
        case "list":
            show_data(name, root)
        case "verify":
            verify_data(name, root)
        case "download":
            download_data(name, root, mirror)


@app.command()
def results(
    places: Annotated[
        list[Path] | None, typer.Argument(help="Result files, or folders of them.", show_default="results/")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Every round, as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    all_rounds: AllRounds = False,
    learning: Annotated[bool, typer.Option("--learning", help="How fast each round learned beside dense.")] = False,
    stages: Annotated[bool, typer.Option("--stages", help="What each stage left: born, died, density.")] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="The other recipes beside this one, seed by seed; or METHOD/RECIPE."),
    ] = None,
) -> None:
    """Compare methods and controls by the results they left.

    --learning, --stages and --against show every round.
    """
    from synaptree.cli.show import show_against, show_learning, show_results, show_stages
    from synaptree.report.comparison import as_json, summary
    from synaptree.results import read

    if learning + stages + (against is not None) > 1:
        raise OptionError("--learning, --stages and --against are tables of their own; ask for one of them")

    where = places or [Path("results")]
    found = read(where) if places or where[0].exists() else []
    if not found:
        raise DataError(f"no result files in {', '.join(map(str, where))}; `synaptree run` writes them")
    if learning:
        show_learning(Console(), found, json=json, markdown=markdown)
    elif stages:
        show_stages(Console(), found, json=json, markdown=markdown)
    elif against is not None:
        show_against(Console(), found, against, json=json, markdown=markdown)
    elif json:
        sys.stdout.write(as_json(summary(found)) + "\n")
    else:
        show_results(Console(), found, all_rounds=all_rounds, markdown=markdown)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or result files.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The file to write.")] = Path(
        "report.html"
    ),
    time: Annotated[bool, typer.Option("--time", help="Measure how long each layer takes in the engine.")] = False,
) -> None:
    """Write runs as one page that opens anywhere, without a network.

    Accuracy over density beside the controls, the density, births and deaths
    of connections, what the network is now, and how all that was made.
    """
    from synaptree.cli.report import write_report

    write_report(runs, out, time=time)


@app.command()
def watch(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on.", show_default="a free one")] = 0,
) -> None:
    """Show runs in a browser of this machine while they go on, until Ctrl-C."""
    from synaptree.cli.watch import serve

    serve(runs, port)


@app.command()
def compare(
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model and data as lenet5-mnist, one of the two, a recipe, or a file of recipes.", metavar="GROUP",
            show_default="all with results",
        ),
    ] = None,
    run_missing: Annotated[bool, typer.Option("--run", help="Run first what has no result yet.")] = False,
    out: Annotated[Path, typer.Option(help="Where networks of runs are and go.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    measure: Annotated[bool, typer.Option("--measure", help="Time the networks that are there.")] = False,
    data: DataFolder = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of what is missing, in place of the recipes' own."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The long forms of recipes are missing as well.")] = False,
    at: Annotated[
        list[float] | None,
        typer.Option(metavar="PERCENT", help="Compare at about this density.", show_default="50, 20, 10, 5, 2, 1"),
    ] = None,
    all_rounds: AllRounds = False,
    picture: Annotated[bool, typer.Option("--picture", help="Draw them as well, under --out; --run does.")] = False,
    which: Annotated[bool, typer.Option("--which", help="Which method to take at 10, 5 and 2 %.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown tables.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Write a page of the same results as well.")
    ] = None,
) -> None:
    """Compare methods at like densities: accuracy, bytes, latency, cost.

    Each table holds results of one model, one data set and one test set. The
    best of a density is the best on validation; a tie is within its interval.
    """
    from synaptree.cli.compare import Asked
    from synaptree.cli.compare import compare as compare_groups
    from synaptree.report.standings import LEVELS

    forms = [form for form, asked in (("which", which), ("markdown", markdown), ("json", json)) if asked]
    if len(forms) > 1:
        raise OptionError(f"--{' and --'.join(forms)} are forms of their own; ask for one of them")
    levels = LEVELS if at is None else [percent / 100 for percent in at]
    compare_groups(
        Asked(
            groups or (), out, results, data, run=run_missing, measure=measure, full=full, seeds=seeds, levels=levels,
            every=all_rounds, picture=picture, form=forms[0] if forms else "table", page=html,
        )
    )  # fmt: skip


@app.command()
def similarity(
    networks: Annotated[
        list[Path], typer.Argument(help="Two files of networks or folders of runs, or more.", metavar="NETWORK")
    ],
    seed_net: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="What all started from: a network, or `round0` for that of each run."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave layers out of the totals, as a dense output layer fc3."),
    ] = None,
    index: Annotated[
        int | None, typer.Option("--round", min=0, help="Of the folders of runs.", show_default="the last")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write it there, every layer with it.")] = None,
) -> None:
    """Compare the topologies of networks, each with each.

    What they share counts where it is clearly above chance, and above what
    they have from a common seed. NNSTD is the similarity after units are
    matched; it is for chains of linear layers.
    """
    from synaptree.cli.similarity import show_similarity

    show_similarity(networks, seed_net=seed_net, exclude=exclude or (), index=index, report=json)


@app.command()
def compress(
    model: Annotated[
        str, typer.Argument(help="A network of the zoo, or MODULE:FUNCTION that returns yours.", metavar="MODEL")
    ],
    data: Annotated[str | None, typer.Option(metavar="SET", help="Data set to train and judge on.")] = None,
    max_drop: Annotated[float, typer.Option(help="Points of validation accuracy that may be lost.")] = 0.5,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time for all of it, as 90s, 20m or 1h30m.")] = "10m",
    method: Annotated[str, typer.Option(help="What cuts: auto, or one of `synaptree methods`.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where file and report go.", show_default="runs/compress/<model>")
    ] = None,
    values: Annotated[
        Literal["auto", "fp32", "fp16", "int8"], typer.Option(help="How weights are stored; auto: by accuracy.")
    ] = "auto",
    root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Where the data sets lie.", show_default="$SYNAPTREE_DATA, or ./data"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of weights and training.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a training batch.")] = 128,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Time the engine at the end.")] = True,
) -> None:
    """Make a network as small as its accuracy on validation data allows.

    An untrained one is trained first. Ctrl-C ends the search, and what was
    found so far is written.
    """
    from synaptree.cli.compress import compress_model

    compress_model(
        model, data=data, max_drop=max_drop, budget=budget, method=method, values=values, root=root, seed=seed,
        out=out or Path("runs") / "compress" / model.replace(":", "-"), batch=batch,
        timing=timing,
    )  # fmt: skip


@app.command()
def pack(
    place: Annotated[Path, typer.Argument(help="A run's folder, or a file.", metavar="NETWORK")],
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE.syn")],
    values: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="How weights are stored.")] = "fp32",
    data: DataFolder = None,
    on: Annotated[
        str | None, typer.Option(metavar="SET", help="Data set to measure on.", show_default="that of the run")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--round", min=0, help="Of a run's folder.", show_default="the last")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of the zoo, for safetensors that no run wrote.", show_default="that of the run")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of --model, as width=32 or classes=100.")
    ] = None,
    no_compact: Annotated[bool, typer.Option("--no-compact", help="Leave units in that do nothing.")] = False,
    fold_norms: Annotated[bool, typer.Option("--fold-norms", help="Batch norms into layers; ends training.")] = False,
) -> None:
    """Compact a network and write it as a small file.

    Where its data is at hand, the test accuracy before and after is measured,
    and, on training images, how large the values in it get.
    """
    from synaptree.cli.files import pack as pack_network

    pack_network(
        place, out, values=values, index=index, model=model, options=option or (), on=on, root=data,
        whole=no_compact, fold_norms=fold_norms,
    )  # fmt: skip


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE.syn")],
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE.safetensors")],
    sparse: Annotated[bool, typer.Option("--sparse", help="Masks, and the values that exist.")] = False,
) -> None:
    """Write what a small file holds as safetensors."""
    from synaptree.cli.files import unpack as unpack_file

    unpack_file(file, out, sparse=sparse)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.syn")],
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show where the bytes of a small file go."""
    from synaptree.cli.files import show_file

    show_file(file, json=json)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE.syn")],
    batch: Annotated[int, typer.Option(min=1, help="Samples of a call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="That share the work.")] = 1,
    dense: Annotated[bool, typer.Option("--dense/--no-dense", help="Time dense layers beside.")] = True,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show which kernel the engine runs each layer with, how fast, and where sparsity gains nothing."""
    from json import dumps

    from synaptree.report.steps import steps
    from synaptree.runtime.engine import Engine

    with steps(2) as step:
        step("planning: computing every layer in several ways")
        engine = Engine(file, threads, batch)
        step("timing dense layers")
        found = engine.explain(dense)
    typer.echo(dumps(found.as_dict(), indent=2) if json else str(found))


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="MODEL.syn")],
    against: Annotated[
        str | None, typer.Option(metavar="NAMES", help="As onnxruntime,openvino,torch, the usual ones.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="NUMBERS", help="Samples of a call, as 1,32.")] = "1,32",
    threads: Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of threads, as 1,2.")] = "1",
    seconds: Annotated[float, typer.Option(help="That each setting is measured for.")] = 3.0,
    precision: Annotated[
        Literal["fp32", "int8"] | None, typer.Option(help="Of the others.", show_default="as the file stores weights")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory as well, in processes of their own.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Time the engine beside dense runtimes of the same network."""
    from synaptree.cli.bench import bench_file

    bench_file(
        file, against=against, batch=batch, threads=threads, seconds=seconds, precision=precision, memory=memory,
        out=json,
    )  # fmt: skip


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.syn")],
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE.onnx", help="The file to write.")],
) -> None:
    """Write the network of a small file as ONNX, checked against ONNX Runtime."""
    from synaptree.cli.files import export as export_file

    export_file(file, onnx)
