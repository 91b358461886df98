//! Records over byte streams, one each way of a pair: what writes and reads them, whatever the streams are.

use std::{io, iter, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::lanes::{Client, Lane, Load};

/// Bytes of records that wait to be written.
/// The pacer fills it once a millisecond: it must not be what bounds a stream.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;

/// One side's way to the other, and the other's to it.
pub struct End<S, R> {
    pub send: S,
    pub recv: R,
}

/// A pair whose streams stand, device first, and what is to be written to them.
pub struct Wired<S, R> {
    pub ends: [End<S, R>; 2],
    queues: [mpsc::Receiver<Bytes>; 2],
}

/// Makes a lane of a pair's streams.
pub fn lane<S, R>(ends: [End<S, R>; 2], size: usize) -> (Lane, Wired<S, R>) {
    let records = (QUEUE_BYTES / size.max(1)).clamp(4, 1024);
    let (device, device_queue) = mpsc::channel(records);
    let (peer, peer_queue) = mpsc::channel(records);
    let lane = Lane([Client::Outlet(device), Client::Outlet(peer)]);
    (lane, Wired { ends, queues: [device_queue, peer_queue] })
}

/// Starts everything that writes and reads. An error ends it, and shows as loss.
pub fn start<S, R>(load: &Arc<Load>, wired: Vec<Wired<S, R>>)
where
    S: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    for (index, Wired { ends, queues }) in wired.into_iter().enumerate() {
        for (role, (End { send, recv }, queue)) in ends.into_iter().zip(queues).enumerate() {
            tokio::spawn(write(load.clone(), send, queue));
            tokio::spawn(read(load.clone(), index, role, recv));
        }
    }
}

async fn write(
    load: Arc<Load>,
    mut send: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    while let Some(record) = queue.recv().await {
        send.write_all(&record).await?;
        load.record_written();
        if queue.is_empty() {
            send.flush().await?;
        }
    }
    Ok(())
}

async fn read(
    load: Arc<Load>,
    index: usize,
    role: usize,
    mut recv: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let Some(lane) = load.lanes.get(index) else { return Ok(()) };
    let mut record = vec![0; load.size];
    loop {
        recv.read_exact(&mut record).await?;
        load.arrived(lane, role, iter::once(&record[..]));
    }
}
