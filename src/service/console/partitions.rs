//! Partitions of the log, and where consumer groups stand in them.

use std::collections::HashMap;

use actix_web::HttpResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Console;
use super::denied::Denied;
use super::serve::{Call, json_answer};
use crate::http::{Refused, wait};
use crate::hub::GroupError;
use crate::model::ConsumerGroup;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    name: String,
}

impl Console {
    pub(super) async fn partitions(&self) -> Result<HttpResponse, Denied> {
        let (router, groups, readers) = (
            self.parts.router.clone(),
            self.parts.groups.clone(),
            self.parts.readers.clone(),
        );
        let document = self
            .walk(move || -> Result<Value, GroupError> {
                let partitions: Vec<_> = router
                    .partitions()
                    .iter()
                    .map(|partition| {
                        let view = &partition.view;
                        let statistics = view.statistics();
                        json!({
                            "id": view.partition().0,
                            "shard": router.shard_of(view.partition()),
                            "first": statistics.first.0,
                            "next": view.durable().0,
                            "written": view.written().0,
                            "bytes": statistics.bytes,
                            "segments": statistics.segments,
                            "firstTime": statistics.first_time.0,
                            "lastTime": statistics.last_time.0,
                            "closedBy": view.closed_by(),
                        })
                    })
                    .collect();
                let reading: HashMap<_, _> = readers
                    .positions()
                    .into_iter()
                    .map(|(group, partition, next)| ((group, partition), next))
                    .collect();
                let mut standings = Vec::new();
                for group in groups.list()? {
                    let mut places = Vec::new();
                    for partition in router.partitions() {
                        let id = partition.view.partition();
                        let (owner, checkpoint) = groups.standing(&group, id)?;
                        places.push(json!({
                            "partition": id.0,
                            "reading": reading.get(&(group.clone(), id)).map(|next| next.0),
                            "checkpoint": checkpoint.map(|next| next.0),
                            "owner": owner.as_ref().map(|owner| owner.id.as_str()),
                        }));
                    }
                    standings.push(json!({ "name": group.as_str(), "partitions": places }));
                }
                Ok(json!({ "partitions": partitions, "groups": standings }))
            })
            .await??;
        Ok(json_answer(&document))
    }

    pub(super) async fn group_create(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let group = named(&call.json::<New>()?.name)?;
        wait(|done| self.parts.groups.create(&group, done)).await??;
        call.did("a consumer group was created", group.as_str());
        Ok(HttpResponse::Created().json(json!({ "name": group.as_str() })))
    }

    pub(super) async fn group_delete(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let group = named(call.segment(1))?;
        wait(|done| self.parts.groups.delete(&group, done)).await??;
        call.did("a consumer group was deleted", group.as_str());
        Ok(HttpResponse::NoContent().finish())
    }
}

fn named(name: &str) -> Result<ConsumerGroup, Denied> {
    ConsumerGroup::new(name).map_err(|error| Denied::body(format_args!("the group's name {error}")))
}

impl From<GroupError> for Refused {
    fn from(error: GroupError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
