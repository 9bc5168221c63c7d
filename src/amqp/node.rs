//! Request and response over a pair of links: `$cbs` and `$management`.
//!
//! A request is answered on the link of its session whose target is the request's reply-to, or, for clients that write
//! something else there, on the session's latest. Until such a link is there and has credit, answers wait.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

use super::connection::Visited;
use super::link::Link;
use crate::proto::amqp::message::{Id, Message, MessageWriter, Properties};
use crate::proto::amqp::value::Writer;
use crate::proto::amqp::{Accept, Attach, Condition, DeliveryState, Error, Role};

/// Requests that a client may send ahead.
const REQUESTS_MAX: u32 = 100;
/// Answers that wait for a link.
const WAITING_MAX: usize = 128;

/// What is answered.
pub struct Response {
    pub status: i32,
    pub description: String,
    pub condition: Option<Condition>,
    /// The value that is the body; none for an empty string.
    pub body: Option<Vec<u8>>,
}

impl Response {
    pub fn new(status: i32, description: impl Into<String>) -> Self {
        Self {
            status,
            description: description.into(),
            condition: None,
            body: None,
        }
    }
}

/// Answers one request.
type Answer = dyn Fn(&Rc<Visited>, &Message<'_>) -> Response;

/// One pair, or several, of one connection.
pub struct Node {
    answer: Box<Answer>,
    /// Who is answered, latest last.
    receivers: RefCell<Vec<Rc<Receiver>>>,
}

struct Receiver {
    link: Link,
    target: String,
    waiting: RefCell<VecDeque<Vec<u8>>>,
    news: Notify,
    is_gone: Cell<bool>,
}

impl Node {
    pub fn new(answer: impl Fn(&Rc<Visited>, &Message<'_>) -> Response + 'static) -> Rc<Self> {
        Rc::new(Self {
            answer: Box::new(answer),
            receivers: RefCell::default(),
        })
    }

    /// Takes one of the pair's links.
    pub fn attach(self: &Rc<Self>, attach: &Attach, link: Link) {
        let node = self.clone();
        match attach.role {
            Role::Sender => {
                link.accept(Accept {
                    credit: REQUESTS_MAX,
                    ..Accept::default()
                });
                actix_rt::spawn(node.take_requests(link));
            }
            Role::Receiver => {
                link.accept(Accept::default());
                let target = attach.target.as_ref().and_then(|target| target.address.clone());
                let receiver = Rc::new(Receiver {
                    link,
                    target: target.unwrap_or_default(),
                    waiting: RefCell::default(),
                    news: Notify::new(),
                    is_gone: Cell::new(false),
                });
                self.receivers.borrow_mut().push(receiver.clone());
                actix_rt::spawn(node.send_responses(receiver));
            }
        }
    }

    async fn take_requests(self: Rc<Self>, link: Link) {
        // Requests that came before a link to answer on.
        let mut early: VecDeque<(Option<String>, Vec<u8>)> = VecDeque::new();
        loop {
            while let Some(delivery) = link.take() {
                match Message::read(&delivery.payload) {
                    Ok(message) => {
                        let response = (self.answer)(link.visited(), &message);
                        let bytes = encode(&response, &message);
                        early.push_back((message.properties.reply_to.map(str::to_owned), bytes));
                        if !delivery.is_settled {
                            link.dispose(delivery.id, delivery.id, 1, DeliveryState::Accepted);
                        }
                    }
                    Err(error) => {
                        let error = Error::new(Condition::DECODE_ERROR, error.to_string());
                        link.dispose(delivery.id, delivery.id, 1, DeliveryState::Rejected(Some(error)));
                    }
                }
            }
            if link.credit() < REQUESTS_MAX / 2 {
                link.grant(REQUESTS_MAX);
            }
            while let Some((reply_to, _)) = early.front() {
                let Some(receiver) = self.receiver(link.channel, reply_to.as_deref()) else {
                    break;
                };
                let (_, bytes) = early.pop_front().expect("looked at above");
                if receiver.waiting.borrow().len() >= WAITING_MAX {
                    return link.end(Error::new(Condition::RESOURCE_LIMIT_EXCEEDED, "answers are not read"));
                }
                receiver.waiting.borrow_mut().push_back(bytes);
                receiver.news.notify_one();
            }
            if link.is_detached() {
                return;
            }
            if early.len() >= WAITING_MAX {
                return link.end(Error::new(
                    Condition::RESOURCE_LIMIT_EXCEEDED,
                    "there is no link to answer on",
                ));
            }
            if early.is_empty() {
                link.changed().await;
            } else {
                // The other link is attached within this moment, or its client has gone.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(5), link.changed()).await;
            }
        }
    }

    fn receiver(&self, channel: u16, reply_to: Option<&str>) -> Option<Rc<Receiver>> {
        let mut receivers = self.receivers.borrow_mut();
        receivers.retain(|receiver| !receiver.is_gone.get());
        let of_session = || {
            receivers
                .iter()
                .rev()
                .filter(|receiver| receiver.link.channel == channel)
        };
        let named = of_session().find(|receiver| reply_to.is_some_and(|to| to == receiver.target));
        named.or_else(|| of_session().next()).cloned()
    }

    async fn send_responses(self: Rc<Self>, receiver: Rc<Receiver>) {
        let mut tag = 0u32;
        while !receiver.link.is_detached() {
            while !receiver.waiting.borrow().is_empty() && receiver.link.can_send() {
                let bytes = receiver.waiting.borrow_mut().pop_front().expect("looked at above");
                receiver.link.send(&tag.to_be_bytes(), |out| out.extend(bytes));
                tag = tag.wrapping_add(1);
            }
            tokio::select! {
                () = receiver.link.changed() => {}
                () = receiver.news.notified() => {}
            }
        }
        receiver.is_gone.set(true);
        self.receivers
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, &receiver));
    }
}

/// A response to a request: its message id is answered in its own type.
fn encode(response: &Response, request: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    let correlation_id = match request.properties.message_id {
        Some(id) => Some(id),
        None => request.properties.correlation_id,
    };
    writer.properties(&Properties {
        correlation_id: correlation_id.map(|id| match id {
            Id::Raw(raw) => Id::Raw(raw),
            Id::Text(text) => Id::Text(text),
        }),
        ..Properties::default()
    });
    let pairs = 2 + usize::from(response.condition.is_some());
    writer.application_properties(pairs, |map| {
        map.string("status-code");
        map.int(response.status);
        map.string("status-description");
        map.string(&response.description);
        if let Some(condition) = &response.condition {
            map.string("error-condition");
            map.symbol(condition.name());
        }
    });
    writer.value(|value| match &response.body {
        Some(body) => value.raw(body),
        None => Writer::string(value, ""),
    });
    bytes
}
