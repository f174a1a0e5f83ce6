//! Streams of frames between networks on loopback.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::HashMap, time::Duration};

use common::Hosts;
use wavesync_net::{
    Event, FRAME_PAYLOAD_MAX_BYTES, INBOUND_STREAMS_MAX, OUTBOUND_QUEUE_HIGH_BYTES, StreamId,
};

#[test]
fn frames_arrive_in_order_both_ways() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        for number in 0..2u8 {
            hosts.networks[0].send(here, vec![number; 10]);
            hosts.networks[1].send(there, vec![100 + number; 20]);
        }
        for number in 0..2u8 {
            assert_eq!(hosts.frame(1, there).await, vec![number; 10]);
            assert_eq!(hosts.frame(0, here).await, vec![100 + number; 20]);
        }
        hosts.networks[0].send(here, Vec::new());
        hosts.networks[0].send(here, vec![5; FRAME_PAYLOAD_MAX_BYTES]);
        assert!(hosts.frame(1, there).await.is_empty());
        assert_eq!(hosts.frame(1, there).await, vec![5; FRAME_PAYLOAD_MAX_BYTES]);
    });
}

#[test]
fn closing_sends_what_is_queued_on_both_sides() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        for number in 0..50u8 {
            hosts.networks[0].send(here, vec![number; 100_000]);
        }
        hosts.networks[0].close_stream(here);
        hosts.networks[0].send(here, b"too late".to_vec());
        hosts.networks[1].send(there, b"answer".to_vec());
        for number in 0..50u8 {
            assert_eq!(hosts.frame(1, there).await, vec![number; 100_000]);
        }
        assert_eq!(hosts.frame(0, here).await, b"answer");
        assert!(hosts.closed(1, there).await.0);
        assert!(hosts.closed(0, here).await.0);
        assert_eq!(hosts.networks[0].queued_bytes(here), 0);
        assert!(hosts.unclaimed.iter().all(|(_, event)| !matches!(event, Event::Frame { .. })));
    });
}

#[test]
fn an_abandoned_stream_sends_its_last_and_stops_who_goes_on_sending() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        // More than a window.
        for _ in 0..20 {
            hosts.networks[1].send(there, vec![7; 100_000]);
        }
        assert_eq!(hosts.frame(0, here).await.len(), 100_000);
        hosts.networks[0].send(here, b"no".to_vec());
        hosts.networks[0].abandon_stream(here);
        assert_eq!(hosts.frame(1, there).await, b"no");
        hosts.closed(1, there).await;
        hosts.closed(0, here).await;
        // Others go on.
        let (here, there) = hosts.open(0, 1).await;
        hosts.networks[0].send(here, b"again".to_vec());
        assert_eq!(hosts.frame(1, there).await, b"again");
    });
}

#[test]
fn a_burst_of_streams_loses_none() {
    const STREAMS: u64 = 300;
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let peer = hosts.peer(1);
        (0..STREAMS).for_each(|token| hosts.networks[0].open_stream(&peer, token));
        // Each stream asks with its token; the other side answers with twice that and closes.
        let mut asked: HashMap<StreamId, u64> = HashMap::new();
        let mut answers: Vec<u64> = Vec::new();
        let (mut open_there, mut most_there) = (0, 0);
        let mut closed_here = 0;
        while closed_here < STREAMS {
            let (who, event) = hosts.wait("event", |who, event| Some((who, clone(event)))).await;
            match (who, event) {
                (0, Event::StreamOpened { stream, token: Some(token), .. }) => {
                    asked.insert(stream, token);
                    hosts.networks[0].send(stream, token.to_be_bytes().to_vec());
                }
                (0, Event::Frame { stream, bytes }) => {
                    let answer = u64::from_be_bytes(bytes.try_into().unwrap());
                    assert_eq!(answer, 2 * asked[&stream]);
                    answers.push(answer);
                }
                (0, Event::Closed { clean, reason, .. }) => {
                    assert!(clean, "{reason}");
                    closed_here += 1;
                }
                (1, Event::StreamOpened { .. }) => {
                    open_there += 1;
                    most_there = most_there.max(open_there);
                }
                (1, Event::Frame { stream, bytes }) => {
                    let asked = u64::from_be_bytes(bytes.try_into().unwrap());
                    hosts.networks[1].send(stream, (2 * asked).to_be_bytes().to_vec());
                    hosts.networks[1].close_stream(stream);
                }
                (1, Event::Closed { .. }) => open_there -= 1,
                (_, Event::OpenFailed { reason, .. }) => panic!("{reason}"),
                _ => {}
            }
        }
        answers.sort_unstable();
        assert_eq!(answers, (0..STREAMS).map(|token| 2 * token).collect::<Vec<_>>());
        assert!(most_there <= INBOUND_STREAMS_MAX, "{most_there} at a time");
    });
}

fn clone(event: &Event) -> Event {
    match event {
        Event::StreamOpened { peer, stream, token } => {
            Event::StreamOpened { peer: peer.clone(), stream: *stream, token: *token }
        }
        Event::Frame { stream, bytes } => Event::Frame { stream: *stream, bytes: bytes.clone() },
        Event::Drained { stream } => Event::Drained { stream: *stream },
        Event::Closed { stream, clean, reason } => {
            Event::Closed { stream: *stream, clean: *clean, reason: reason.clone() }
        }
        Event::OpenFailed { peer, token, reason } => {
            Event::OpenFailed { peer: peer.clone(), token: *token, reason: reason.clone() }
        }
        other => Event::Listening { address: format!("{other:?}") },
    }
}

/// An end in mid-transfer. The abort resets the stream, which the peer's yamux shows as a plain end
/// of file: `clean` is whatever the cut happened to look like, and proves nothing. What is promised
/// is that every complete frame before the cut arrives in order and that no partial frame does.
#[test]
fn an_aborted_stream_ends_on_both_sides() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        hosts.networks[0].send(here, b"first".to_vec());
        assert_eq!(hosts.frame(1, there).await, b"first");
        hosts.networks[0].send(here, vec![1; FRAME_PAYLOAD_MAX_BYTES]);
        hosts.networks[0].abort_stream(here);
        let (clean, reason) = hosts.closed(0, here).await;
        assert!(!clean);
        assert!(reason.contains("aborted"), "{reason}");
        hosts.closed(1, there).await;
        assert!(hosts.unclaimed.iter().all(|(_, event)| !matches!(event, Event::Frame { .. })));
    });
}

#[test]
fn a_lost_connection_ends_its_streams_before_its_peer() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        for _ in 0..20 {
            hosts.networks[0].send(here, vec![1; FRAME_PAYLOAD_MAX_BYTES]);
        }
        assert_eq!(hosts.frame(1, there).await.len(), FRAME_PAYLOAD_MAX_BYTES);
        // The process is gone in mid-transfer.
        drop(hosts.networks.remove(0));
        hosts.unclaimed.clear();
        let mut frames = 1;
        loop {
            let event = hosts.wait("event", |_, event| Some(clone(event))).await;
            match event {
                Event::Frame { bytes, .. } => {
                    assert_eq!(bytes.len(), FRAME_PAYLOAD_MAX_BYTES);
                    frames += 1;
                }
                Event::Closed { stream, .. } => {
                    assert_eq!(stream, there);
                    break;
                }
                Event::Listening { address } => assert!(!address.starts_with("Disconnected")),
                _ => {}
            }
        }
        assert!(frames < 20, "the transfer was over before the cut");
        hosts
            .wait("disconnection", |_, event| {
                matches!(event, Event::Disconnected { .. }).then_some(())
            })
            .await;
    });
}

#[test]
fn opening_without_a_connection_fails_with_the_token() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        let peer = hosts.peer(1);
        hosts.networks[0].open_stream(&peer, 77);
        let reason = hosts
            .wait("failure", |_, event| match event {
                Event::OpenFailed { token: 77, reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .await;
        assert!(reason.contains("not connected"), "{reason}");
        // Unknown streams are ignored.
        hosts.networks[0].send(StreamId(999), vec![1]);
        hosts.networks[0].close_stream(StreamId(999));
        assert_eq!(hosts.networks[0].queued_bytes(StreamId(999)), 0);
    });
}

#[test]
fn a_frame_that_is_too_long_aborts_its_stream() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, _) = hosts.open(0, 1).await;
        hosts.networks[0].send(here, vec![0; FRAME_PAYLOAD_MAX_BYTES + 1]);
        let (clean, reason) = hosts.closed(0, here).await;
        assert!(!clean);
        assert!(reason.contains("at most"), "{reason}");
    });
}

/// 32 MiB to a reader that stops: the sender's queue keeps to the sender's bound, and what left it
/// fits into what the connection may buffer. Then the reader goes on and everything arrives.
#[test]
fn a_slow_reader_bounds_the_sender() {
    const TOTAL_BYTES: usize = 32 * 1024 * 1024;
    const FRAME_BYTES: usize = 64 * 1024;
    /// yamux's window for one stream, the kernel's socket buffers and one gathered write.
    const IN_FLIGHT_MAX_BYTES: usize = 12 * 1024 * 1024;
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        let reader = hosts.networks.pop().unwrap();
        let mut sent = 0;
        let fill = |hosts: &mut Hosts, sent: &mut usize| {
            while *sent < TOTAL_BYTES
                && hosts.networks[0].queued_bytes(here) <= OUTBOUND_QUEUE_HIGH_BYTES
            {
                let byte = (*sent / FRAME_BYTES) as u8;
                hosts.networks[0].send(here, vec![byte; FRAME_BYTES]);
                *sent += FRAME_BYTES;
            }
        };
        // Nobody reads: send until the queue stays full for a while.
        let mut stalled_since = (std::time::Instant::now(), 0);
        while stalled_since.0.elapsed() < Duration::from_millis(300) {
            fill(&mut hosts, &mut sent);
            if sent != stalled_since.1 {
                stalled_since = (std::time::Instant::now(), sent);
            }
            let pause = smol::Timer::after(Duration::from_millis(5));
            futures::future::select(Box::pin(hosts.next()), pause).await;
        }
        assert!(sent < TOTAL_BYTES, "nothing held the sender back");
        assert!(sent < IN_FLIGHT_MAX_BYTES, "{sent} bytes left without a reader");
        assert!(
            hosts.networks[0].queued_bytes(here) <= OUTBOUND_QUEUE_HIGH_BYTES + FRAME_BYTES + 4
        );

        hosts.networks.push(reader);
        let mut received = 0;
        while received < TOTAL_BYTES {
            match hosts.wait("event", |who, event| Some((who, clone(event)))).await {
                (0, Event::Drained { stream }) => {
                    assert_eq!(stream, here);
                    fill(&mut hosts, &mut sent);
                }
                (1, Event::Frame { stream, bytes }) => {
                    assert_eq!(stream, there);
                    assert_eq!(bytes, vec![(received / FRAME_BYTES) as u8; FRAME_BYTES]);
                    received += bytes.len();
                }
                _ => {}
            }
            let queued = hosts.networks[0].queued_bytes(here);
            assert!(queued <= OUTBOUND_QUEUE_HIGH_BYTES + FRAME_BYTES + 4, "{queued}");
        }
        hosts.networks[0].close_stream(here);
        assert!(hosts.closed(1, there).await.0);
    });
}
