"""Where a state is kept, by spec and command line."""

from typing import Any

import pytest
from compute_node.actors.lfc_manager.places import (
    BAD_ADDRESS,
    NO_ADDRESS,
    NO_ENDPOINT,
    NO_TOKEN,
    EndpointPlace,
    FolderPlace,
    NoPlaceError,
    Place,
    place_of,
)
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Cluster, GenericOption

from doubles.endpoint_storage import TENANT, TIMELINE
from doubles.specs import a_spec, settings

FULL: dict[str, Any] = {
    "endpoint_id": "ep-winter",
    "tenant_id": TENANT.upper(),
    "timeline_id": TIMELINE,
    "endpoint_storage_addr": "storage:51243",
    "endpoint_storage_token": Secret("t"),
}


def found(store: str | None = None, endpoint: str | None = None, **spec: Any) -> Place:
    return place_of(a_spec(**spec), settings(lfc_store=store), endpoint)


def test_the_spec_names_an_object_of_the_endpoint_storage() -> None:
    assert found(**FULL | {"tenant_id": TENANT}) == EndpointPlace(
        "storage:51243", f"/{TENANT}/{TIMELINE}/ep-winter/lfc_state", Secret("t")
    )


def test_another_endpoints_object_is_beside_it() -> None:
    place = found(endpoint="ep-other", **FULL)
    assert isinstance(place, EndpointPlace)
    assert place.path.endswith("/ep-other/lfc_state")


def test_where_a_field_is_absent_its_setting_counts() -> None:
    named = {
        "neon.endpoint_storage_addr": "h:1",
        "neon.endpoint_storage_token": "t",
        "neon.tenant_id": TENANT,
        "neon.timeline_id": TIMELINE,
        "neon.endpoint_id": "ep",
    }
    options = tuple(GenericOption(name, "string", value) for name, value in named.items())
    place = found(cluster=Cluster(roles=(), databases=(), settings=options))
    assert place == EndpointPlace("h:1", f"/{TENANT}/{TIMELINE}/ep/lfc_state", Secret("t"))


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("endpoint_id", NO_ENDPOINT),
        ("endpoint_storage_addr", NO_ADDRESS),
        ("endpoint_storage_token", NO_TOKEN),
        ("tenant_id", "pspec.tenant_id missing"),
        ("timeline_id", "pspec.timeline_id missing"),
    ],
)
def test_what_is_missing_is_named(without: str, text: str) -> None:
    with pytest.raises(NoPlaceError, match=f"^{text}$"):
        found(**FULL | {without: None})


def test_a_folder_is_for_nodes_without_endpoint_storage() -> None:
    assert found("/lfc") == FolderPlace("/lfc", "compute-1")
    assert found("/lfc", endpoint_id="ep") == FolderPlace("/lfc", "ep")
    assert found("/lfc", "other", endpoint_id="ep") == FolderPlace("/lfc", "other")
    assert isinstance(found("/lfc", **FULL), EndpointPlace)


@pytest.mark.parametrize("name", ["..", ".", "...", ""])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    for store, spec in (("/lfc", {}), (None, FULL)):
        if name:
            with pytest.raises(NoPlaceError, match="is no name"):
                found(store, name, **spec)


@pytest.mark.parametrize(
    "name", ["../../etc", "a/b", "/", "a\0b", "%2e%2e", "a?b#c", "a\r\nX: y", "\N{SNOWMAN}"]
)
def test_a_name_stays_one_part_of_the_path(name: str) -> None:
    local, remote = found("/lfc", name), found(endpoint=name, **FULL)
    assert isinstance(local, FolderPlace)
    assert "/" not in local.name
    assert "\0" not in local.name
    assert isinstance(remote, EndpointPlace)
    assert remote.path.count("/") == 4
    assert remote.path.isascii()
    assert remote.path.isprintable()
    assert "?" not in remote.path


@pytest.mark.parametrize("address", ["http://h:1", "h", "h:", "h:1/x", "u:p@h:1", "h:1\r\n", "h:x"])
def test_an_address_that_is_not_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(NoPlaceError) as error:
        found(**FULL | {"endpoint_storage_addr": address})
    assert str(error.value) == BAD_ADDRESS, "it may hold a password"


@pytest.mark.parametrize("address", ["h:1", "10.0.0.1:51243", "[::1]:51243", "a-b.example.com:65535"])
def test_an_address_is_host_and_port(address: str) -> None:
    place = found(**FULL | {"endpoint_storage_addr": address})
    assert isinstance(place, EndpointPlace)
    assert place.address == address
