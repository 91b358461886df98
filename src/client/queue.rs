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
