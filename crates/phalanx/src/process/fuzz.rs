//! What a template and its owner read from each other, spoilt; see `crate::fuzz`.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use super::template_server::{Next, TemplateServer};
use super::wire::{LEN, Message};
use crate::fuzz::{Fuzz, Script};
use crate::sys::socket;

pub(super) fn valid() -> Vec<Vec<u8>> {
    let messages = [
        Message::Request { id: 1, fds: 1 },
        Message::Request { id: 2, fds: 3 },
        Message::Rest { id: 2 },
        Message::Launched { id: 1, pid: 4711 },
        Message::Refused { id: 2, errno: 11 },
        Message::Exited { id: 1, status: 9 << 8 },
        Message::Lifeline,
    ];
    messages.into_iter().map(|message| message.encode().to_vec()).collect()
}

/// Sends what is in the script: messages, each with some descriptors.
pub(super) fn say(socket: impl AsFd, script: &mut Script<'_>) {
    let file = std::fs::File::open("/dev/null").unwrap();
    while !script.is_over() {
        let message = [script.bytes(LEN), script.bytes(usize::from(script.0.len() > 4 * LEN))];
        let fds = vec![file.as_fd(); usize::from(message[0].last().unwrap_or(&0) & 3)];
        if socket::send(&socket, &message.concat(), &fds, false).is_err() {
            return; // no room
        }
    }
}

#[test]
fn bytes_are_a_message_or_none() {
    Fuzz::new("template message").run(&valid(), |bytes| {
        if let Some(message) = Message::decode(bytes) {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    });
}

#[test]
fn a_request_without_an_id_ends_a_template() {
    let (owner, template) = socket::pair().unwrap();
    let mut server = TemplateServer::new(template.into_raw_fd()).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let request = Message::Request { id: 0, fds: 1 };
    socket::send(&owner, &request.encode(), &[file.as_fd()], true).unwrap();
    let next = server.wait_request(Instant::now() + Duration::from_secs(20)).unwrap();
    assert!(matches!(next, Some(Next::End)), "{next:?}");
}

#[test]
fn a_template_serves_or_ends_whatever_its_owner_says() {
    Fuzz::new("template request").cost(60).run(&[valid().concat()], |bytes| {
        let (owner, template) = socket::pair().unwrap();
        let mut server = TemplateServer::new(template.into_raw_fd()).unwrap();
        say(&owner, &mut Script(bytes));
        for _ in 0..100 {
            match server.wait_request(Instant::now() + Duration::ZERO).unwrap() {
                Some(Next::Request(request)) => {
                    assert!(request.hint().len() <= bytes.len());
                    server.refused(libc::EAGAIN);
                }
                Some(Next::End) | None => break,
            }
        }
        assert!(server.as_raw_fd() >= 0);
    });
}
