//! A bounded queue between the connections of a session and the application.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// First in, first out, for any number of both. Bounded by the items' weight and number.
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Notify,
    max_weight: usize,
    max_items: usize,
}

struct Inner<T> {
    items: VecDeque<(T, usize)>,
    weight: usize,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(max_weight: usize, max_items: usize) -> Self {
        let inner = Inner { items: VecDeque::new(), weight: 0, closed: false };
        Self { inner: Mutex::new(inner), filled: Notify::new(), max_weight, max_items }
    }

    /// Adds an item, and removes the oldest ones that then are too much. Says how many it removed.
    ///
    /// For datagrams: a reader that cannot follow is better served by what is new.
    pub(super) fn push_evicting(&self, item: T, weight: usize) -> u64 {
        let mut inner = self.lock();
        if inner.closed {
            return 1;
        }
        inner.add(item, weight);
        let mut evicted = 0;
        while (inner.weight > self.max_weight || inner.items.len() > self.max_items) && inner.take().is_some()
        {
            evicted += 1;
        }
        drop(inner);
        self.filled.notify_one();
        evicted
    }

    /// Adds an item unless the queue is full or closed; then gives it back.
    pub(super) fn push(&self, item: T, weight: usize) -> Result<(), T> {
        let mut inner = self.lock();
        let full =
            inner.weight.saturating_add(weight) > self.max_weight || inner.items.len() >= self.max_items;
        if full || inner.closed {
            return Err(item);
        }
        inner.add(item, weight);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// The oldest item, when there is one. `None` once the queue is closed and empty. Cancel safe.
    pub(super) async fn pop(&self) -> Option<T> {
        loop {
            // Made before looking, so that an item added in between wakes it.
            let filled = self.filled.notified();
            {
                let mut inner = self.lock();
                if let Some(item) = inner.take() {
                    return Some(item);
                }
                if inner.closed {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// The oldest item, if there is one now.
    pub(super) fn try_pop(&self) -> Option<T> {
        self.lock().take()
    }

    /// Takes no more; what is there can still be had.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Inner<T> {
    fn add(&mut self, item: T, weight: usize) {
        self.weight = self.weight.saturating_add(weight);
        self.items.push_back((item, weight));
    }

    fn take(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight = self.weight.saturating_sub(weight);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_the_newest_within_its_bounds(weights in prop::collection::vec(0usize..40, 0..200)) {
            let queue = Queue::new(100, 8);
            let mut dropped = 0;
            for (number, weight) in weights.iter().enumerate() {
                dropped += queue.push_evicting(number, *weight);
                let inner = queue.lock();
                prop_assert!(inner.items.len() <= 8 && inner.weight <= 100);
                prop_assert_eq!(inner.weight, inner.items.iter().map(|(_, weight)| weight).sum::<usize>());
            }
            let mut left = Vec::new();
            while let Some(number) = queue.try_pop() {
                left.push(number);
            }
            let first = usize::try_from(dropped).unwrap();
            prop_assert_eq!(left, (first..weights.len()).collect::<Vec<_>>());
        }

        #[test]
        fn refuses_what_is_too_much(weights in prop::collection::vec(0usize..40, 0..200)) {
            let queue = Queue::new(100, 8);
            let mut held = 0;
            for weight in weights {
                let fits = held + weight <= 100 && queue.lock().items.len() < 8;
                prop_assert_eq!(queue.push((), weight).is_ok(), fits);
                if fits {
                    held += weight;
                }
            }
        }
    }

    #[tokio::test]
    async fn wakes_one_waiter_an_item_and_all_at_the_end() {
        let queue = std::sync::Arc::new(Queue::new(10, 10));
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.push(1, 1).unwrap();
        queue.push(2, 1).unwrap();
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(queue.push(3, 1), Err(3));
        assert_eq!(queue.push_evicting(3, 1), 1);
        let mut got = Vec::new();
        for waiter in waiters {
            got.extend(waiter.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        assert_eq!(queue.pop().await, None);
    }
}
