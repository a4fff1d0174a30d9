"""The endpoints of collections."""

from __future__ import annotations

from .server import Answer, Call, Refused, endpoint

SLUG = r"(?P<slug>[\w.-]+/[\w.-]+)"


def _find(call: Call, slug: str, write: bool = False) -> dict:
    collection = call.hub.collections.get(slug)
    owner = slug.split("/")[0]
    if collection is None or collection["private"] and not (call.account and call.account.may_read(owner)):
        raise Refused(404, "Collection not found")
    if write and not (call.account and call.account.may_write(owner, "collection.write")):
        raise Refused(403, "You don't have the rights to change this collection")
    return collection


@endpoint("POST", "/api/collections")
def create(call: Call) -> Answer:
    payload = call.json
    if call.account is None:
        raise Refused(401, "Invalid username or password.")
    if not call.account.may_write(payload["namespace"], "collection.write"):
        raise Refused(403, "You don't have the rights to create a collection under this namespace")
    if len(payload["title"]) > 60 or len(payload.get("description") or "") > 150:
        raise Refused(400, "title or description is too long")
    for slug, collection in call.hub.collections.items():
        if collection["title"] == payload["title"] and slug.startswith(f"{payload['namespace']}/"):
            raise Refused(409, "This collection already exists", slug=slug)
    return Answer.of(call.hub.new_collection(call.account, payload))


@endpoint("GET", "/api/collections")
def list_collections(call: Call) -> Answer:
    """List collections with the first four items of each, as the Hub does."""
    owners = call.query.get("owner")
    found = []
    for slug, collection in call.hub.collections.items():
        owner = slug.split("/")[0]
        visible = not collection["private"] or call.account and call.account.may_read(owner)
        if visible and (not owners or owner in owners):
            found.append({**collection, "items": collection["items"][:4]})
    return Answer.of([{key: value for key, value in c.items() if key != "position"} for c in found])


@endpoint("GET", f"/api/collections/{SLUG}")
def get(call: Call, slug: str) -> Answer:
    return Answer.of(_find(call, slug))


@endpoint("POST", f"/api/collections/{SLUG}/items")
def add(call: Call, slug: str) -> Answer:
    collection = _find(call, slug, write=True)
    item, note = call.json["item"], call.json.get("note")
    call.repo(item["type"], item["id"])
    if any((other["id"], other["type"]) == (item["id"], item["type"]) for other in collection["items"]):
        raise Refused(409, "This item is already in the collection")
    number = len(collection["items"])
    shown = {"_id": f"{number:024x}", "id": item["id"], "type": item["type"], "position": number}
    collection["items"].append({**shown, "note": {"text": note}} if note else shown)
    return Answer.of(collection)
