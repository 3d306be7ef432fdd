"""Base classes of admin pages for tables with millions of rows: no query may cost more as the table grows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin import ShowFacets, SimpleListFilter
from django.contrib.admin.views.main import SEARCH_VAR
from django.contrib.admin.views.main import ChangeListSearchForm as _ChangeListSearchForm
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .bigint import parse_id
from .postgres.clock import isoformat_z

if TYPE_CHECKING:
    # unfold is untyped, and its classes are Django's with other templates.
    from django.contrib.admin import ModelAdmin, TabularInline
    from django.contrib.admin.views.main import ChangeList
    from django.core.paginator import Paginator

    AnyModelAdmin = ModelAdmin[Any]
    AnyTabularInline = TabularInline[Any, Any]
    AnyPaginator = Paginator[Any]
else:
    from unfold.admin import ModelAdmin as AnyModelAdmin
    from unfold.admin import TabularInline as AnyTabularInline
    from unfold.paginator import InfinitePaginator as AnyPaginator
    from unfold.views import ChangeList

_ROWS_PER_PAGE = 25
# OFFSET reads the rows that it skips, and a URL can ask for any page: 400 pages are at most 10,000 rows.
_MAX_PAGES = 400

_NUMBER = re.compile(r"[0-9]{1,19}")


def number_in(text: str) -> int | None:
    """Parse a positive signed 64-bit number in decimal digits; None for any other text."""
    return parse_id(text) if _NUMBER.fullmatch(text) else None


def uuid_in(text: str) -> UUID | None:
    """Parse a UUID; None for any other text."""
    try:
        return UUID(text)
    except ValueError:
        return None


Column = Callable[[Any], Any]


def column(name: str, value: Column, colours: Mapping[str, str] | None = None) -> Column:
    """Build a column that shows ``value(row)``; ``colours`` (by value) turns the value into a coloured label."""

    def show(row: Any) -> Any:
        return value(row)

    show.__name__ = name
    options = {"short_description": name.replace("_", " "), "empty_value_display": "-", "label": colours}
    vars(show).update(options)
    return show


def code(field: str, colours: Mapping[str, str] | None = None) -> Column:
    """Build a column with the value as the API returns it, not Django's label for it."""
    return column(field, attrgetter(field), colours)


def utc(field: str) -> Column:
    """Build a column with the time in ``field``, to the second, on one line."""

    def value(row: Any) -> SafeString | None:
        moment = getattr(row, field)
        return moment and format_html('<span style="white-space: nowrap">{}</span>', f"{moment:%Y-%m-%d %H:%M:%S}")

    return column(field, value)


def exact_utc(field: str) -> Column:
    """Build a column with the time in ``field`` as events carry it, to the microsecond."""

    def value(row: Any) -> str | None:
        moment = getattr(row, field)
        return moment and isoformat_z(moment)

    return column(field, value)


def search_link(model: type[Model], text: str) -> SafeString:
    """Return a link to the list of ``model``, searched by ``text``."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist", query={SEARCH_VAR: text})
    return format_html('<a href="{}">{}</a>', address, text)


def row_link(model: type[Model], key: object) -> SafeString:
    """Return a link to the page of the row of ``model`` with primary key ``key``."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[key])
    return format_html('<a href="{}">{}</a>', address, key)


class BoundedPaginator(AnyPaginator):
    """Runs no COUNT: its count is the number of rows that can be paged through, not the number of rows."""

    count = _ROWS_PER_PAGE * _MAX_PAGES


class _SearchForm(_ChangeListSearchForm):
    """Passes every text on to the search, which can answer with a message: Django's form shows all rows for NUL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields[SEARCH_VAR].validators.clear()


class NewestFirst(ChangeList):
    """A list that is always sorted by primary key, newest first, whatever ordering the URL asks for."""

    search_form_class = _SearchForm
    model_admin: BigTableAdmin

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        return super().get_queryset(request, exclude_parameters).defer(*self.model_admin.not_in_the_list)

    def get_results(self, request: HttpRequest) -> None:
        if self.page_num > _MAX_PAGES:
            messages.warning(request, f"The list ends with page {_MAX_PAGES}. Search for older rows.")
        self.page_num = min(max(self.page_num, 1), _MAX_PAGES)
        super().get_results(request)
        # No rows were counted: the template shows the full count only where it differs from this count.
        self.full_result_count = self.result_count


class BigTableAdmin(AnyModelAdmin):
    """Lists by primary key and searches by index.

    A filter needs an index too: without an index, a value that few rows have is searched through the whole table.
    """

    list_per_page = _ROWS_PER_PAGE
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    sortable_by = ()
    # Shows the search box; ``find`` does the searching.
    search_fields = ("pk",)
    # Fields that the list does not read: wide columns that it does not show.
    not_in_the_list: tuple[str, ...] = ()

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        """Return the rows that ``text`` (stripped, not empty) identifies; None if it cannot identify any row."""
        raise NotImplementedError

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        text = search_term.strip()
        if not text:
            return queryset, False
        found = self.find(queryset, text)
        if found is None:
            messages.warning(request, f"This list cannot be searched by that. Search by {self.search_help_text}.")
            return queryset.none(), False
        return found, False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NewestFirst

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow only the parameters of our filters: by default a URL may filter by any column."""
        return any(
            isinstance(item, type) and issubclass(item, SimpleListFilter) and item.parameter_name == lookup
            for item in self.list_filter
        )


class _ReadOnly:
    """Makes rows read-only, also for superusers: only the service writes them."""

    # The fields that are shown: top to bottom on a page, left to right in an inline.
    shown: tuple[str | Column, ...] = ()

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.shown

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.shown


class ReadOnlyAdmin(_ReadOnly, BigTableAdmin):
    """A read-only admin of a big table: lists, and a page per row."""


class ReadOnlyInline(_ReadOnly, AnyTabularInline):
    """Read-only rows on the page of their parent row."""

    extra = 0
