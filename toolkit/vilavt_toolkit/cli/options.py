"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vilavt_toolkit.cli import completion


def _print_version(wanted: bool) -> None:
    if wanted:
        from vilavt_toolkit.utils.versions import collect_versions

        typer.echo(f"vilavt {collect_versions()['vilavt-toolkit']}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of an installed recipe, or path of a YAML file.",
        autocompletion=completion.complete_recipe,
    ),
]
PlannedRecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="Name of an installed recipe, or path of a YAML file. Not needed with --calibrate.",
        autocompletion=completion.complete_recipe,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Folder of a run, or a recipe with model.checkpoint.",
        autocompletion=completion.complete_folder,
    ),
]
KindArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[KIND]",
        help="Kind to list, like modulator. Default: all kinds.",
        autocompletion=completion.complete_kind,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change: train.steps=100.")
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a run, folder of ViLaVT or Qwen2.5-VL weights, or hub name like owner/name.",
        autocompletion=completion.complete_folder,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue from the run's last checkpoint. With `auto` after it: if there is one, else begin a new run.",
    ),
]
AllowChangesOption = Annotated[
    bool,
    typer.Option(
        "--allow-changes", help="With --resume: go on although settings or data files that count have changed."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Device: auto, cpu, cuda or mps. auto takes a GPU if there is one.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Type of the weights: float32, bfloat16 or float16. Default: as trained, in export as stored."
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest turn in tokens. The paper's model needs 2048.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="Sampling temperature. 0 always takes the likeliest token.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the sampling. The same seed gives the same tokens.")]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Revision of a hub name. Default: the newest one.")
]
LocalFilesOption = Annotated[
    bool, typer.Option("--local-files-only", help="Never download: use the files that were downloaded before.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-plugins", help="Run plugins of a checkpoint that have not run here before. Read them.")
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="Devices that train together. Default: train.devices."),
]
PlannedDeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device to plan for: h200, b200, h100, a100, l40s or rtx4090 by their stated rates, or here, as "
        "--calibrate has measured this machine. Default: here for a recipe of the CPU that was measured, else h200.",
    ),
]
CalibrateOption = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Measure the rates of this machine first, in under a minute, and keep them for --device here.",
    ),
]
DeviceMemoryOption = Annotated[
    str | None,
    typer.Option("--device-memory", metavar="SIZE", help="Memory of a device, like 141GB. Default: as --device has."),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--length",
        metavar="TOKENS",
        min=1,
        help="Tokens of every dialogue. Default: as the task's samples have them, or 16384 where they are not here.",
    ),
]
DataFileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="JSON, CSV, parquet, a folder of the library datasets, or shards: part-{000..010}.tar."
    ),
]
DataRootOption = Annotated[
    str, typer.Option("--root", metavar="DIR", help="Folder that image paths are relative to. Default: the file's.")
]
CountingRecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Count tokens and patches as this recipe's model does."),
]
OpenImagesOption = Annotated[bool, typer.Option("--open", help="Decode every image completely, not only its header.")]
NewFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="Folder to write into. Default: this folder, or the component's place in a checkout of the toolkit.",
    ),
]
PlanJsonOption = Annotated[
    bool, typer.Option("--json", help="Print the plan of every stage, or the rates, as one line of JSON.")
]
