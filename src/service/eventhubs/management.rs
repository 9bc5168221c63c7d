//! `$management`: the facts that clients ask for before they read.

use std::rc::Rc;
use std::sync::Arc;

use super::EventHubs;
use super::reader::last_of;
use crate::amqp::Visited;
use crate::amqp::credentials::Grant;
use crate::amqp::node::Response;
use crate::model::PartitionId;
use crate::proto::amqp::Condition;
use crate::proto::amqp::message::Message;
use crate::proto::amqp::value::Writer;

// Built-in endpoint section 4.7.
const EVENTHUB: &str = "com.microsoft:eventhub";
const PARTITION: &str = "com.microsoft:partition";

/// Answers a READ.
pub(super) fn answer(hub: &Arc<EventHubs>, visited: &Rc<Visited>, request: &Message<'_>) -> Response {
    let text = |key| request.application_property(key).and_then(|value| value.as_text());
    if !text("operation").is_some_and(|operation| operation.eq_ignore_ascii_case("READ")) {
        return refused(400, Condition::NOT_IMPLEMENTED, "the operation is not READ");
    }
    let entity = text("name").unwrap_or_default();
    if !is_allowed(visited, entity, text("security_token")) {
        return refused(
            401,
            Condition::UNAUTHORIZED,
            "no credential that allows reading was shown",
        );
    }
    if !hub.is_entity(entity) {
        let reason = format!("The messaging entity '{entity}' could not be found.");
        return refused(404, Condition::NOT_FOUND, &reason);
    }
    match text("type") {
        Some(EVENTHUB) => ok(|writer| eventhub(hub, writer)),
        Some(PARTITION) => {
            let id = request.application_property("partition");
            let id = id.and_then(|id| match id.as_text() {
                Some(text) => text.parse().ok(),
                None => id.as_integer().and_then(|number| u16::try_from(number).ok()),
            });
            match id.map(PartitionId).filter(|id| hub.router.partition(*id).is_some()) {
                Some(id) => ok(|writer| partition(hub, visited, id, writer)),
                None => refused(
                    404,
                    Condition::NOT_FOUND,
                    "The messaging entity's partition could not be found.",
                ),
            }
        }
        Some(_) | None => refused(
            400,
            Condition::ARGUMENT_ERROR,
            "the type is neither an event hub nor a partition",
        ),
    }
}

fn is_allowed(visited: &Rc<Visited>, entity: &str, token: Option<&str>) -> bool {
    let address = format!("{entity}/$management");
    if let Some(token) = token.filter(|token| !token.is_empty())
        && visited.events_by_token(token, &address).is_ok()
    {
        return true;
    }
    visited.grant(&Grant::Events(address)).is_ok()
}

fn refused(status: i32, condition: Condition, reason: &str) -> Response {
    Response {
        condition: Some(condition),
        ..Response::new(status, reason)
    }
}

fn ok(write: impl FnOnce(&mut Writer<'_>)) -> Response {
    let mut body = Vec::new();
    write(&mut Writer(&mut body));
    Response {
        body: Some(body),
        ..Response::new(200, "OK")
    }
}

fn eventhub(hub: &EventHubs, writer: &mut Writer<'_>) {
    let ids: Vec<String> = (0..hub.router.partition_count()).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    writer.map(6, |map| {
        map.string("name");
        map.string(&hub.facts.entity);
        map.string("type");
        map.string(EVENTHUB);
        map.string("created_at");
        map.timestamp(hub.facts.created.0);
        map.string("partition_count");
        map.int(i32::from(hub.router.partition_count()));
        map.string("partition_ids");
        map.strings(&ids);
        map.string("georeplication_factor");
        map.int(1);
    });
}

fn partition(hub: &EventHubs, visited: &Visited, id: PartitionId, writer: &mut Writer<'_>) {
    let view = &hub.router.partition(id).expect("it was found before").view;
    let (last, time) = last_of(view);
    let first = view.first_retained();
    let is_empty = first >= view.durable();
    writer.map(9, |map| {
        map.string("name");
        map.string(&hub.facts.entity);
        map.string("type");
        map.string(PARTITION);
        map.string("partition");
        map.string(&id.0.to_string());
        map.string("begin_sequence_number");
        map.long(i64::try_from(first.0).unwrap_or(i64::MAX));
        map.string("last_enqueued_sequence_number");
        map.long(last);
        map.string("last_enqueued_offset");
        map.string(&last.to_string());
        map.string("last_enqueued_time_utc");
        map.timestamp(time.0);
        map.string("is_partition_empty");
        map.boolean(is_empty);
        map.string("runtime_info_retrieval_time_utc");
        map.timestamp(visited.now().0);
    });
}
