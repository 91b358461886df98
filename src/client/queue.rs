//! A bounded queue between the connections of a session and the application, for streams.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// First in, first out, for any number of both ends. Bounded by the number of items.
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Notify,
    max_items: usize,
}

struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(max_items: usize) -> Self {
        let inner = Inner { items: VecDeque::new(), closed: false };
        Self { inner: Mutex::new(inner), filled: Notify::new(), max_items }
    }

    /// Adds an item unless the queue is full or closed; then gives it back.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut inner = self.lock();
        if inner.items.len() >= self.max_items || inner.closed {
            return Err(item);
        }
        inner.items.push_back(item);
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
                if let Some(item) = inner.items.pop_front() {
                    return Some(item);
                }
                if inner.closed {
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

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refuses_what_is_too_much_and_keeps_the_order() {
        let queue = Queue::new(3);
        for number in 0..3 {
            queue.push(number).unwrap();
        }
        assert_eq!(queue.push(3), Err(3));
        assert_eq!(queue.pop().await, Some(0));
        queue.push(4).unwrap();
        queue.close();
        let mut left = Vec::new();
        while let Some(number) = queue.pop().await {
            left.push(number);
        }
        assert_eq!(left, [1, 2, 4]);
    }

    #[tokio::test]
    async fn wakes_one_waiter_an_item_and_all_at_the_end() {
        let queue = std::sync::Arc::new(Queue::new(10));
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.push(1).unwrap();
        queue.push(2).unwrap();
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(queue.push(3), Err(3));
        let mut got = Vec::new();
        for waiter in waiters {
            got.extend(waiter.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        assert_eq!(queue.pop().await, None);
    }
}
