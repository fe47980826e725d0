"""The web service of a model: routes, what they take and give, the pages. Importing it needs the `serve` extra."""

import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException

from transferkit import __version__
from transferkit.data.images.decode import UnreadableImage
from transferkit.data.scan.formats import sniff_format
from transferkit.results.serve.answering import (
    Answer,
    Answerer,
    NoRanks,
    NoTarget,
    NotCalibrated,
    NoUnknown,
    TaskAnswer,
)
from transferkit.results.serve.batching import BatcherClosed
from transferkit.results.serve.guards import Guards, Limits

__all__ = ["Health", "Problem", "build_app"]

PAGE_COVERAGE = 0.95
PICTURE = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": PICTURE}}
            },
            "image/*": {"schema": PICTURE},
        },
    }
}


class Health(BaseModel):
    """Whether the server can answer, and for what."""

    ready: bool
    model: str = Field(description="name of the run")
    classes: list[str] = Field(description="in index order")
    device: str = Field(description="cpu, cuda or mps")
    version: str = Field(description="of transferkit")
    pictures: int = Field(description="that the model has seen since the start")
    batches: int = Field(description="in which it has seen them")


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    id: str | None = Field(None, description="of an internal error, in the server's log")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (403, "a page of another origin asked"),
        (408, "the body did not arrive in time"),
        (413, "the picture is too large"),
        (415, "not a picture"),
        (422, "a picture that cannot be decoded, or a parameter out of range"),
        (503, "too many requests are under way; come back after Retry-After seconds"),
    )
}


def build_app(
    answerer: Answerer,
    *,
    limits: Limits,
    hosts: frozenset[str] | None = None,
    top_k: int | None = None,
    log: Callable[[str], None] | None = None,
) -> FastAPI:
    """Return the service, guarded.

    Args:
        answerer: The model; closed with the service.
        limits: How much clients may ask.
        hosts: Names the server may be called by; ``None`` for any.
        top_k: Most probable classes to tell, where a request does not say; 5 when ``None``.
        log: Called with a line for every request.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await answerer.close()

    app = FastAPI(
        title=answerer.name, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Answers of a fine-tuned model of pictures.",
    )  # fmt: skip
    app.add_middleware(Guards, limits=limits, hosts=hosts, log=log)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    predictor = answerer.predictor
    classes = list(predictor.class_names)
    pages = Environment(loader=PackageLoader("transferkit.results"), autoescape=True)

    @app.post(
        "/predict",
        response_model=Answer if answerer.output.names_one else TaskAnswer,
        response_model_exclude_none=True,
        response_description="what the model says",
        responses=PROBLEMS,
        openapi_extra=BODY,
    )
    async def predict(
        request: Request,
        top_k: Annotated[
            int | None, Query(ge=1, description="of one class per picture: most probable ones to tell")
        ] = top_k,
        coverage: Annotated[
            float | None,
            Query(gt=0.0, lt=1.0, description="of the conformal set, or of intervals of numbers; calibrated runs only"),
        ] = None,
        unknown: Annotated[
            float | None,
            Query(gt=0.0, lt=1.0, description="label 'unknown' where more held-out pictures than this are nearer"),
        ] = None,
        explain: Annotated[bool, Query(description="add a heat map and the nearest training pictures")] = False,
        target: Annotated[
            str | None,
            Query(description="with explain: class, label or number of the heat map; that of the answer when left out"),
        ] = None,
    ) -> Answer | TaskAnswer:
        """Say what one picture shows: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, or HEIC where it is installed."""
        data = await _picture(request, limits)
        try:
            return await answerer.answer(
                data, top_k=top_k, coverage=coverage, unknown=unknown, explain=explain, target=target
            )
        except BatcherClosed:
            raise HTTPException(503, "the server is stopping") from None
        except NotCalibrated as error:
            usual = "coverage is for models that are calibrated, on enough pictures for it, and this one is not"
            raise HTTPException(422, str(error) or usual) from None
        except NoRanks:
            raise HTTPException(422, "top_k is for models of one class per picture, not this one") from None
        except (NoTarget, NoUnknown) as error:
            raise HTTPException(422, str(error)) from None
        except UnreadableImage as error:
            known = sniff_format(data) is not None
            raise HTTPException(422 if known else 415, f"cannot read the picture: {_plain(error.reason)}") from None

    @app.get("/health", response_description="it can answer")
    async def health() -> Health:
        """Tell whether the server is ready, and which classes it knows."""
        return Health(
            ready=True,
            model=answerer.name,
            classes=classes,
            device=predictor.device,
            version=__version__,
            pictures=answerer.logits.items,
            batches=answerer.logits.batches,
        )

    own, files = answerer.output.page, answerer.output.files
    page = None if own is None else pages.get_template(own.template).render(
        name=answerer.name,
        backbone=predictor.info.backbone,
        class_count=len(classes),
        limit_bytes=limits.picture_bytes,
        limit_text=f"{limits.picture_bytes / 1e6:g} MB",
        coverage=PAGE_COVERAGE if answerer.calibrated else None,
        legend=[] if files is None else files.legend(predictor.info.target_spec),
        **own.facts(predictor.info.target_spec),
    )  # fmt: skip

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("/docs") if page is None else _page(page)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        base = str(request.base_url).rstrip("/")
        query = "?top_k=3" if answerer.output.names_one else ""
        return _page(pages.get_template("serve_docs.html.j2").render(api=app.openapi(), base=base, query=query))

    return app


async def _picture(request: Request, limits: Limits) -> bytes:
    """Return the picture of a request, from a form or as the whole body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = await request.body()
    elif kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=8) as form:
            part = form.get("image")
            if not isinstance(part, UploadFile):
                raise HTTPException(422, "the form has no file in its field 'image'")
            data = await part.read()
    else:
        raise HTTPException(
            415, "expected multipart/form-data with a file in the field 'image', or a body of type image/*"
        )
    if len(data) > limits.picture_bytes:
        raise limits.too_large()
    return data


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"error": "; ".join(problems)}, 422)


def _plain(reason: str) -> str:
    """Leave out what a decoder's message says of our memory."""
    return re.sub(r"<[^>]*>|0x[0-9a-f]{6,}", "...", reason)


def _page(html: str) -> HTMLResponse:
    """Return a page whose policy allows its own script and style, by digest, and pictures and requests of its own."""
    policy = (
        f"default-src 'none'; script-src {_digest(html, 'script')}; style-src {_digest(html, 'style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"content-security-policy": policy})


def _digest(html: str, tag: str) -> str:
    """Return what a policy calls the one block of this kind on a page, or nothing at all."""
    block = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    if block is None:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(block[1].encode()).digest()).decode()}'"
