//! What waits for the application to receive it: datagrams, kept in the trains they arrived in.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf as _, Bytes};
use tokio::sync::Notify;

use super::stats::Counters;

/// What a waiting datagram costs beside its payload, in bytes.
const DATAGRAM_OVERHEAD: usize = 64;

/// Datagrams that arrived together, laid end to end: all of the same size, but for the last, which may be shorter.
///
/// What the kernel received as one piece stays one: a receiver that takes trains pays once for each, not for each
/// datagram. A single datagram is a train too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Train {
    /// The datagrams' payloads.
    pub data: Bytes,
    /// The size of each but the last, in bytes; never 0.
    pub segment_bytes: usize,
}

impl Train {
    /// A datagram that came alone.
    pub(super) fn single(data: Bytes) -> Self {
        Self { segment_bytes: data.len().max(1), data }
    }

    /// How many datagrams it holds; at least one.
    pub fn count(&self) -> usize {
        self.data.len().div_ceil(self.segment_bytes.max(1)).max(1)
    }

    /// The datagrams, in order. They share the train's memory, which lives as long as the last of them.
    pub fn datagrams(&self) -> impl Iterator<Item = Bytes> + '_ {
        let segment = self.segment_bytes.max(1);
        (0..self.count()).map(move |index| {
            let start = (index * segment).min(self.data.len());
            self.data.slice(start..(start + segment).min(self.data.len()))
        })
    }

    /// Takes the first datagram off; what is left is none or a train.
    fn take_first(mut self) -> (Bytes, Option<Self>) {
        if self.data.len() <= self.segment_bytes {
            return (self.data, None);
        }
        let first = self.data.split_to(self.segment_bytes);
        (first, Some(self))
    }
}

/// First in, first out, bounded by weight: when it is full, the oldest datagrams go. Who cannot follow is better
/// served by what is new.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    max_weight: usize,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Waiting {
    trains: VecDeque<Train>,
    weight: usize,
    closed: bool,
}

impl Inbox {
    pub(super) fn new(max_bytes: usize, counters: Arc<Counters>) -> Self {
        Self { waiting: Mutex::default(), filled: Notify::new(), max_weight: max_bytes, counters }
    }

    /// Takes in what arrived from the other side, and drops, and counts, what then is too much.
    pub(super) fn receive(&self, train: Train) {
        self.counters.datagrams_received.add(train.count() as u64);
        self.counters.datagram_bytes_received.add(train.data.len() as u64);
        let dropped = {
            let mut waiting = self.lock();
            if waiting.closed { train.count() as u64 } else { waiting.push(train, self.max_weight) }
        };
        self.filled.notify_one();
        if dropped > 0 {
            self.counters.receive_dropped.add(dropped);
        }
    }

    /// The oldest datagram. `None` once the inbox is closed and empty. Cancel safe.
    pub(super) async fn pop(&self) -> Option<Bytes> {
        self.wait_for(Waiting::pop).await
    }

    /// The oldest train. As [`pop`](Self::pop).
    pub(super) async fn pop_train(&self) -> Option<Train> {
        self.wait_for(Waiting::pop_train).await
    }

    /// The oldest datagram, if there is one now.
    pub(super) fn try_pop(&self) -> Option<Bytes> {
        self.lock().pop()
    }

    /// The oldest train, if there is one now.
    pub(super) fn try_pop_train(&self) -> Option<Train> {
        self.lock().pop_train()
    }

    async fn wait_for<T>(&self, take: impl Fn(&mut Waiting) -> Option<T>) -> Option<T> {
        loop {
            // Made before looking, so that what arrives in between wakes it.
            let filled = self.filled.notified();
            {
                let mut waiting = self.lock();
                if let Some(taken) = take(&mut waiting) {
                    // A train wakes one waiter, and may have something for another.
                    if !waiting.trains.is_empty() {
                        self.filled.notify_one();
                    }
                    return Some(taken);
                }
                if waiting.closed {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// Takes no more; what is there can still be had.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Adds a train, and takes the oldest datagrams away until the rest is light enough. Says how many.
    fn push(&mut self, train: Train, max_weight: usize) -> u64 {
        self.weight += train.data.len() + train.count() * DATAGRAM_OVERHEAD;
        self.trains.push_back(train);
        let mut dropped = 0;
        while self.weight > max_weight && self.drop_oldest() {
            dropped += 1;
        }
        dropped
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(front) = self.trains.front_mut() else { return false };
        let bytes = front.data.len().min(front.segment_bytes);
        self.weight -= bytes + DATAGRAM_OVERHEAD;
        front.data.advance(bytes);
        if front.data.is_empty() {
            self.trains.pop_front();
        }
        true
    }

    fn pop(&mut self) -> Option<Bytes> {
        let (first, rest) = self.trains.pop_front()?.take_first();
        self.weight -= first.len() + DATAGRAM_OVERHEAD;
        if let Some(rest) = rest {
            self.trains.push_front(rest);
        }
        Some(first)
    }

    fn pop_train(&mut self) -> Option<Train> {
        let train = self.trains.pop_front()?;
        self.weight -= train.data.len() + train.count() * DATAGRAM_OVERHEAD;
        Some(train)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A train whose datagrams' bytes all are `number`; datagram sizes as the wire gives them.
    fn train(number: u8, segment_bytes: usize, count: usize, last_bytes: usize) -> Train {
        let len = segment_bytes * (count - 1) + last_bytes.clamp(1, segment_bytes);
        Train { data: vec![number; len].into(), segment_bytes }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever arrives and however it is taken: the newest datagrams that fit are there, in order, and what is
        /// not there has been counted.
        #[test]
        fn holds_the_newest_datagrams_within_its_bound(
            steps in prop::collection::vec((0..4u8, 1usize..40, 1usize..8, 1usize..40), 0..200),
        ) {
            let counters = Arc::new(Counters::default());
            let inbox = Inbox::new(1000, counters.clone());
            let mut model: VecDeque<Bytes> = VecDeque::new();
            let (mut arrived, mut dropped) = (0, 0);
            for (number, (what, segment_bytes, count, last)) in steps.into_iter().enumerate() {
                match what {
                    0 => prop_assert_eq!(inbox.try_pop(), model.pop_front()),
                    1 => match inbox.try_pop_train() {
                        Some(train) => {
                            let expected: Vec<_> = model.drain(..train.count()).collect();
                            prop_assert_eq!(train.datagrams().collect::<Vec<_>>(), expected);
                        }
                        None => prop_assert!(model.is_empty()),
                    },
                    what => {
                        let train = if what == 2 && last == 1 {
                            Train::single(Bytes::new())
                        } else {
                            train(number as u8, segment_bytes, count, last)
                        };
                        arrived += train.count();
                        prop_assert!(what != 2 || last != 1 || train.count() == 1);
                        model.extend(train.datagrams());
                        inbox.receive(train);
                        let weigh = |model: &VecDeque<Bytes>| {
                            model.iter().map(|data| data.len() + DATAGRAM_OVERHEAD).sum::<usize>()
                        };
                        while weigh(&model) > 1000 {
                            model.pop_front();
                            dropped += 1;
                        }
                        prop_assert_eq!(inbox.lock().weight, weigh(&model));
                    }
                }
            }
            prop_assert_eq!(counters.snapshot().receive_dropped, dropped);
            prop_assert_eq!(counters.snapshot().datagrams_received, arrived as u64);
            while let Some(expected) = model.pop_front() {
                prop_assert_eq!(inbox.try_pop(), Some(expected));
            }
            prop_assert_eq!(inbox.try_pop(), None);
            prop_assert_eq!(inbox.lock().weight, 0);
        }
    }

    #[tokio::test]
    async fn one_train_serves_many_waiters_and_the_end_wakes_all() {
        let inbox = Arc::new(Inbox::new(10_000, Arc::new(Counters::default())));
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let inbox = inbox.clone();
                tokio::spawn(async move { inbox.pop().await })
            })
            .collect();
        tokio::task::yield_now().await;
        inbox.receive(train(1, 3, 2, 2));
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(waiters.iter().filter(|waiter| waiter.is_finished()).count(), 2);
        inbox.close();
        inbox.receive(train(2, 1, 5, 1));
        let mut got = Vec::new();
        for waiter in waiters {
            got.extend(waiter.await.unwrap());
        }
        assert_eq!(got, [&[1, 1, 1][..], &[1, 1]]);
        assert_eq!(inbox.pop_train().await, None);
        assert_eq!(inbox.counters.snapshot().receive_dropped, 5);
    }
}
