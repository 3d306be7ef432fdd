"""What admin pages of tables with millions of rows have in common: nothing on them may depend on the table's size."""

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
# OFFSET reads what it skips: nobody turns so many pages, but an address can name any.
_PAGES = 400

_NUMBER = re.compile(r"[0-9]{1,19}")
_LARGEST = 2**63 - 1


def number_in(text: str) -> int | None:
    """The positive 64-bit number that ``text`` is, None if it is something else."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if 0 < number <= _LARGEST else None


def uuid_in(text: str) -> UUID | None:
    """The UUID that ``text`` is, None if it is something else."""
    try:
        return UUID(text)
    except ValueError:
        return None


Column = Callable[[Any], Any]


def column(name: str, value: Column, colours: Mapping[str, str] | None = None) -> Column:
    """A column that shows ``value(row)``; with ``colours`` by value as a label."""

    def show(row: Any) -> Any:
        return value(row)

    show.__name__ = name
    options = {"short_description": name.replace("_", " "), "empty_value_display": "-", "label": colours}
    vars(show).update(options)
    return show


def code(field: str, colours: Mapping[str, str] | None = None) -> Column:
    """A column with a value as the API tells it, not as Django labels it."""
    return column(field, attrgetter(field), colours)


def utc(field: str) -> Column:
    """A column with the time in ``field`` to the second, on one line."""

    def value(row: Any) -> SafeString | None:
        moment = getattr(row, field)
        return moment and format_html('<span style="white-space: nowrap">{}</span>', f"{moment:%Y-%m-%d %H:%M:%S}")

    return column(field, value)


def exact_utc(field: str) -> Column:
    """The time in ``field`` as the events tell it, to the microsecond."""

    def value(row: Any) -> str | None:
        moment = getattr(row, field)
        return moment and isoformat_z(moment)

    return column(field, value)


def search_link(model: type[Model], text: str) -> SafeString:
    """A link to what the list of ``model`` finds by ``text``."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist", query={SEARCH_VAR: text})
    return format_html('<a href="{}">{}</a>', address, text)


def row_link(model: type[Model], key: object) -> SafeString:
    """A link to the page of a row."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[key])
    return format_html('<a href="{}">{}</a>', address, key)


class BoundedPaginator(AnyPaginator):
    """Counts nothing: it says how much may be leafed through, not how much there is."""

    count = _ROWS_PER_PAGE * _PAGES


class _SearchForm(_ChangeListSearchForm):
    """Lets everything through to the search, which knows what to say: Django's own shows the whole list for NUL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields[SEARCH_VAR].validators.clear()


class NewestFirst(ChangeList):
    """A list in the order of the primary key, whatever the address asks for."""

    search_form_class = _SearchForm
    model_admin: BigTableAdmin

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        return super().get_queryset(request, exclude_parameters).defer(*self.model_admin.not_in_the_list)

    def get_results(self, request: HttpRequest) -> None:
        if self.page_num > _PAGES:
            messages.warning(request, f"The list ends with page {_PAGES}. Search for what is older.")
        self.page_num = min(max(self.page_num, 1), _PAGES)
        super().get_results(request)
        # Nobody counted: the page shows these numbers only where they differ.
        self.full_result_count = self.result_count


class BigTableAdmin(AnyModelAdmin):
    """Lists by primary key and searches by index. A filter needs an index too: a value that hardly any row has
    would otherwise be looked for through the whole table.
    """

    list_per_page = _ROWS_PER_PAGE
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    sortable_by = ()
    # Shows the search box; ``find`` does the searching.
    search_fields = ("pk",)
    # What would only make the list slow to read.
    not_in_the_list: tuple[str, ...] = ()

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        """Those of ``rows`` that ``text`` (not empty, stripped) names; None if it cannot be anybody's name."""
        raise NotImplementedError

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        text = search_term.strip()
        if not text:
            return queryset, False
        found = self.find(queryset, text)
        if found is None:
            messages.warning(request, f"Nothing here is found by that. Search by {self.search_help_text}.")
            return queryset.none(), False
        return found, False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NewestFirst

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Only what our filters ask for: by default an address may filter by any column."""
        return any(
            isinstance(item, type) and issubclass(item, SimpleListFilter) and item.parameter_name == lookup
            for item in self.list_filter
        )


class _ReadOnly:
    """To look at, for superusers too: these rows are written by the service alone."""

    # A row's fields, from top to bottom or from left to right.
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
    """Lists, and pages of a row."""


class ReadOnlyInline(_ReadOnly, AnyTabularInline):
    """Rows on the page of the row that they belong to."""

    extra = 0
