"""Reads the watched sources into the state file: whole at first, then only what is newer.

A source that shows nothing new costs one request. Each page is stored together with how far the source
was read, so a poll that dies goes on where it stopped and skips nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.mirror import SourceState
from hubbot.bot.ledger.store import Ledger
from hubbot.errors import HubFailed, SourceNotFound, TokenRefused
from hubbot.hub.failures import RequestRefused
from hubbot.hub.read import listing
from hubbot.hub.read.reader import Params, Reader
from hubbot.hub.seen import Candidate
from hubbot.log.redact import redact
from hubbot.settings.watch import SearchSettings, WatchSettings

HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A source that is a list of models: an author's, or what a search finds."""

    name: str
    query: Params
    ordered: bool = True  # by lastModified, so that reading may stop at what is known
    limit: int | None = None  # models
    wanted: Callable[[Candidate], bool] = lambda _: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """What a poll came to."""

    sources: int
    requests: int
    failures: dict[str, str]  # source -> why it could not be read


def source_names(watch: WatchSettings) -> list[str]:
    """The names of all watched sources in the state file."""
    return [
        *(f"model:{name}" for name in watch.models),
        *(f"collection:{slug}" for slug in watch.collections),
        *(source.name for source in _lists(watch)),
    ]


def poll(reader: Reader, ledger: Ledger, watch: WatchSettings) -> Poll:
    """Read every watched source. One that cannot be read is reported, and the others go on.

    Raises TokenRefused at once, and HubFailed when no source at all could be read: nothing to go on with.
    """
    before, failures = reader.requests, {}
    refresh = watch.refresh_hours * HOUR
    steps = [
        *((f"model:{name}", partial(poll_model, reader, ledger, name)) for name in watch.models),
        *((f"collection:{slug}", partial(_poll_collection, reader, ledger, slug)) for slug in watch.collections),
        *((source.name, partial(poll_list, reader, ledger, source, refresh)) for source in _lists(watch)),
    ]
    for name, step in steps:
        try:
            step()
        except TokenRefused:
            raise
        except (HubFailed, SourceNotFound) as error:
            failures[name] = redact(str(error), reader.hub.token)
            mirror.store_failure(ledger, name, failures[name])
    if steps and len(failures) == len(steps):
        raise HubFailed(
            f"None of the {len(steps)} watched sources could be read. The first: {next(iter(failures.values()))}"
        )
    return Poll(sources=len(steps), requests=reader.requests - before, failures=failures)


def poll_list(reader: Reader, ledger: Ledger, source: Listed, refresh: float) -> None:
    """Read a list as far as it is new; whole when it never was, or `refresh` seconds ago."""
    state = mirror.source_state(ledger, source.name)
    now = ledger.now()
    fresh = state.whole is not None and 0 <= now - state.whole < refresh
    if fresh and source.ordered and not state.resume:
        _read_news(reader, ledger, source, state)
    else:
        _read_whole(reader, ledger, source, state)


def _read_news(reader: Reader, ledger: Ledger, source: Listed, state: SourceState) -> None:
    newest, etag = state.cursor, state.etag
    done = replace(state, polled=ledger.now(), error=None)
    for number, page in enumerate(listing.pages(reader, source.query, etag=state.etag)):
        if page.body is None:
            mirror.store_page(ledger, done, ())
            return
        found = listing.candidates(page)
        if number == 0:
            newest, etag = max([m.modified for m in found] + [state.cursor or ""]), page.etag
        mirror.store_page(ledger, state, filter(source.wanted, found))
        if not found or found[-1].modified < (state.cursor or ""):
            break
    mirror.store_page(ledger, replace(done, cursor=newest, etag=etag), ())


def _read_whole(reader: Reader, ledger: Ledger, source: Listed, state: SourceState) -> None:
    if not state.resume:
        state = replace(state, sweep=state.sweep + 1, newest=None)
    try:
        _walk(reader, ledger, source, state)
    except (SourceNotFound, RequestRefused):  # the cursor where it stopped is worth nothing any more
        if not state.resume:
            raise
        _walk(reader, ledger, source, replace(state, resume=None, sweep=state.sweep + 1, newest=None))


def _walk(reader: Reader, ledger: Ledger, source: Listed, state: SourceState) -> None:
    left, found = source.limit, list[Candidate]()
    for page in listing.pages(reader, source.query, resume=state.resume):
        found = listing.candidates(page)
        if left is not None:
            found = list(islice(found, left))
            left -= len(found)
        if state.newest is None:
            state = replace(state, newest=max([m.modified for m in found], default=""), etag=page.etag)
        state = replace(state, resume=page.next if left is None or left > 0 else None)
        if state.resume is None:
            break
        mirror.store_page(ledger, state, filter(source.wanted, found))
    now = ledger.now()
    state = replace(state, cursor=state.newest, newest=None, whole=now, polled=now, error=None)
    mirror.store_page(ledger, state, filter(source.wanted, found), whole_ends=True)


def poll_model(reader: Reader, ledger: Ledger, name: str) -> None:
    """Read one model that is watched by name."""
    state = mirror.source_state(ledger, f"model:{name}")
    found, etag = listing.read_model(reader, name, etag=state.etag)
    state = replace(state, etag=etag, polled=ledger.now(), error=None)
    mirror.store_page(ledger, state, [found] if found else ())


def _poll_collection(reader: Reader, ledger: Ledger, slug: str) -> None:
    """Read a collection, then those of its models that it shows as modified since they were read."""
    state = mirror.source_state(ledger, f"collection:{slug}")
    models, etag = listing.collection(reader, slug, etag=state.etag)
    if models is None:
        mirror.store_page(ledger, replace(state, polled=ledger.now(), error=None), ())
        return
    state = replace(state, sweep=state.sweep + 1)
    failures: list[str] = []
    for name, modified in models.items():
        known = mirror.candidate(ledger, name)
        if known is None or known.modified != modified:
            try:
                known = listing.read_model(reader, name)[0] or known
            except TokenRefused:
                raise
            except SourceNotFound:  # a collection may name what was deleted or is hidden from us
                continue
            except HubFailed as error:
                failures.append(f"{name}: {error}")
        if known:
            mirror.store_page(ledger, state, [known])
    now = ledger.now()
    state = replace(state, etag=None if failures else etag, polled=now, whole=now, error=None)
    mirror.store_page(ledger, state, (), whole_ends=True)
    if failures:
        raise HubFailed(f"{len(failures)} of {len(models)} models could not be read, the others were. {failures[0]}")


def author_source(author: str, *, name: str | None = None) -> Listed:
    return Listed(name=name or f"author:{author}", query=listing.author_query(author))


def _lists(watch: WatchSettings) -> list[Listed]:
    return [*(author_source(author) for author in watch.authors), *(_search(search) for search in watch.searches)]


def _search(search: SearchSettings) -> Listed:
    return Listed(
        name=f"search:{search.model_dump_json(exclude_defaults=True)}",
        query=listing.search_query(search),
        ordered=not search.trending,
        limit=search.limit,
        wanted=lambda found: listing.created_on_or_after(found, search.created_since),
    )
