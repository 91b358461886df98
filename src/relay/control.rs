//! Control frames over quinn streams. Cancel-safe reading; nothing allocated on a caller's word.

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream};

use crate::wire::control::{FrameError, HEADER_LEN, MAX_FRAME_UNAUTHENTICATED, frame_len};

/// Why no further frame will come.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFrameError {
    /// The frame breaks the rules.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The client finished the stream in the middle of a frame.
    #[error("the control stream ended within a frame")]
    Truncated,
    /// The client reset the stream.
    #[error("the control stream was reset")]
    Reset,
    /// The connection is gone; there is nobody to tell.
    #[error("the connection is lost")]
    ConnectionLost,
}

/// Reads frames from the control stream.
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    max_bytes: usize,
}

impl FrameReader {
    /// Begins with the limit for callers who have shown no token.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), max_bytes: MAX_FRAME_UNAUTHENTICATED }
    }

    /// Changes the limit for frames that have not been judged yet.
    pub fn set_max(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// The body of the next frame; `None` when the client finished the stream between frames.
    ///
    /// Cancel-safe: what has been read stays in the buffer.
    ///
    /// # Errors
    /// [`ReadFrameError`]; no frame follows one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadFrameError> {
        loop {
            let wanted_bytes = match self.buffer.first_chunk::<HEADER_LEN>() {
                None => HEADER_LEN,
                Some(header) => {
                    let frame_bytes = HEADER_LEN + frame_len(*header, self.max_bytes)?;
                    if self.buffer.len() >= frame_bytes {
                        return Ok(Some(self.buffer.split_to(frame_bytes).freeze().slice(HEADER_LEN..)));
                    }
                    frame_bytes
                }
            };
            // Never read past this frame: what follows it may fall under another limit.
            match self.stream.read_chunk(wanted_bytes - self.buffer.len(), true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(ReadFrameError::Truncated),
                Err(ReadError::Reset(_)) => return Err(ReadFrameError::Reset),
                Err(_) => return Err(ReadFrameError::ConnectionLost),
            }
        }
    }
}
