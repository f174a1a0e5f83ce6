//! What a write costs in groups of many sizes: messages, bytes, hops and time, with and without
//! members that come and go. `GROUP_SIZES=2,10,100,1000` prints the table of docs/PROTOCOL.md.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod crowd;
#[path = "../simulator/dice.rs"]
#[allow(dead_code)]
mod dice;

use crowd::{Crowd, Traffic};
use wavesync_core::mesh;

/// Writes that are watched in one run.
const WRITES: i64 = 10;

struct Outcome {
    neighbours: f64,
    most_neighbours: usize,
    frames_per_write: f64,
    bytes_per_write: f64,
    pushes_per_write: f64,
    hops: u32,
    median_ms: u64,
    most_ms: u64,
    idle_bytes_per_minute: f64,
}

fn measure(size: usize, churning: bool) -> Outcome {
    let mut crowd = Crowd::new(size, 7, None);
    let met = crowd.run_while(120_000, |crowd| {
        let enough = mesh::NEIGHBOURS_MIN.min(size - 1);
        crowd.members.iter().any(|member| member.neighbours.len() < enough) || !crowd.greeted()
    });
    assert!(met, "{size} members have not met within two minutes");
    crowd.run_until(crowd.now + 30_000);
    let before = crowd.total();
    crowd.run_until(crowd.now + 60_000);
    let idle = difference(crowd.total(), before);
    let neighbours = crowd.members.iter().map(|member| member.neighbours.len()).sum::<usize>();
    if churning {
        crowd.churn();
        crowd.run_until(crowd.now + 10_000);
    }
    let (before, kinds) = (crowd.total(), crowd.traffic.clone());
    for id in 1..=WRITES {
        let writer = crowd.a_member_that_is_up();
        crowd.write(writer, id);
        if churning {
            crowd.run_until(crowd.now + 2_000);
        } else {
            let all = crowd.run_while(60_000, |crowd| crowd.missing(id) > 0);
            assert!(all, "{} of {size} members lack a write after a minute", crowd.missing(id));
        }
    }
    crowd.run_until(crowd.now + 1_000);
    let cost = difference(crowd.total(), before);
    let push = wavesync_core::wire::message::sealed::PUSH;
    let kind = |traffic: &std::collections::BTreeMap<u8, Traffic>| {
        traffic.get(&push).copied().unwrap_or_default()
    };
    let pushes = difference(kind(&crowd.traffic), kind(&kinds));
    if churning {
        crowd.churning = false;
        let all = crowd.run_while(120_000, |crowd| (1..=WRITES).any(|id| crowd.missing(id) > 0));
        assert!(all, "somebody lacks a write two minutes after the last member came back");
    }
    let (hops, mut times) = arrivals(&crowd);
    times.sort_unstable();
    Outcome {
        neighbours: neighbours as f64 / size as f64,
        most_neighbours: crowd.members.iter().map(|member| member.most_neighbours).max().unwrap(),
        frames_per_write: cost.frames as f64 / WRITES as f64,
        bytes_per_write: cost.bytes as f64 / WRITES as f64,
        pushes_per_write: pushes.frames as f64 / WRITES as f64,
        hops,
        median_ms: times[times.len() / 2],
        most_ms: times[times.len() - 1],
        idle_bytes_per_minute: idle.bytes as f64 / size as f64,
    }
}

/// The most hops of any write, and how long each arrival took at members that were there.
fn arrivals(crowd: &Crowd) -> (u32, Vec<u64>) {
    let mut most = 0;
    let mut times = Vec::new();
    for id in &crowd.watched {
        let written = crowd.members.iter().filter_map(|member| member.arrived.get(id));
        let start = written.map(|(_, at)| *at).min().unwrap();
        // Who was away gets it when it returns, which says nothing about the way; the writer has it.
        for (at, member) in crowd.members.iter().enumerate() {
            let churner = crowd.churned && at.is_multiple_of(5);
            let Some((hops, time)) = member.arrived.get(id) else { continue };
            if churner || *hops == 0 {
                continue;
            }
            most = most.max(*hops);
            times.push(time - start);
        }
    }
    (most, times)
}

fn difference(after: Traffic, before: Traffic) -> Traffic {
    Traffic { frames: after.frames - before.frames, bytes: after.bytes - before.bytes }
}

fn sizes() -> Vec<usize> {
    let text = std::env::var("GROUP_SIZES").unwrap_or_else(|_| "2,10,40".into());
    text.split(',').map(|size| size.trim().parse().expect("GROUP_SIZES=2,10,100")).collect()
}

#[test]
fn a_write_reaches_everyone_at_a_bounded_cost_per_member() {
    println!(
        "| members | away and back | neighbours | messages a write | of these pushes \
         | bytes a write and member | hops | ms, median | ms, most | bytes a minute, idle member |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for size in sizes() {
        for churning in [false, true] {
            let outcome = measure(size, churning);
            println!(
                "| {size} | {} | {:.1} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {:.0} |",
                if churning { format!("{} %", 100 * size.div_ceil(5) / size) } else { "-".into() },
                outcome.neighbours,
                outcome.frames_per_write,
                outcome.pushes_per_write,
                outcome.bytes_per_write / size as f64,
                outcome.hops,
                outcome.median_ms,
                outcome.most_ms,
                outcome.idle_bytes_per_minute,
            );
            let bound =
                if size <= mesh::FULL_MESH_MAX_MEMBERS { size } else { 2 * mesh::NEIGHBOURS_MAX };
            assert!(outcome.most_neighbours <= bound, "{} neighbours", outcome.most_neighbours);
            let per_member = outcome.pushes_per_write / size as f64;
            assert!(per_member <= mesh::NEIGHBOURS_MAX as f64, "{per_member} pushes a member");
        }
    }
}

#[test]
fn a_write_crosses_a_line_of_five_without_waiting_for_a_timer() {
    let line = (0..4).map(|at| (at, at + 1)).collect();
    let mut crowd = Crowd::new(5, 11, Some(line));
    let met = crowd.run_while(60_000, |crowd| {
        let links = crowd.members.iter().map(|member| member.neighbours.len()).sum::<usize>();
        links < 8 || !crowd.greeted()
    });
    assert!(met);
    crowd.run_until(crowd.now + 5_000);
    let way = crowd.way(&[0, 1, 2, 3, 4]);
    let start = crowd.now;
    crowd.write(0, 1);
    assert!(crowd.run_while(2_000, |crowd| crowd.missing(1) > 0));
    let (hops, at) = crowd.members[4].arrived[&1];
    assert_eq!(hops, 4);
    // Virtual time passes on the way only.
    assert_eq!(at - start, way, "milliseconds for a way of {way}");
}
