//! Close codes: why a connection or an allocation ended, as one number both sides understand.

use std::fmt;

/// What a reset that the relay itself makes carries in its upper bits: `zr` in ASCII.
const RESET_BASE: u64 = 0x7a72_0000;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// The application error code of a QUIC `CONNECTION_CLOSE`, repeated in `Refused` and `Closing`.
        ///
        /// The code alone suffices to act on. `PROTOCOL.md` section 5.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum CloseCode {
            $($(#[$doc])* $variant = $number,)*
        }

        impl CloseCode {
            /// Every code, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that the protocol gives the code, in capitals.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The code with this number, if there is one.
            pub const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// An ordinary end, nothing went wrong.
    Closed = 0x00, "CLOSED";
    /// A malformed, oversized, unknown or misplaced frame.
    ProtocolError = 0x01, "PROTOCOL_ERROR";
    /// No complete Hello, or no answer to a Challenge, in the time allowed.
    AuthTimeout = 0x02, "AUTH_TIMEOUT";
    /// The token is not acceptable; the relay's log knows exactly why.
    TokenInvalid = 0x10, "TOKEN_INVALID";
    /// The token was good once.
    TokenExpired = 0x11, "TOKEN_EXPIRED";
    /// The allocation asked for is not the one the token speaks of.
    AllocationMismatch = 0x12, "ALLOCATION_MISMATCH";
    /// The caller did not show that it holds its role's key.
    ProofInvalid = 0x13, "PROOF_INVALID";
    /// Too many requests from one source.
    RateLimited = 0x20, "RATE_LIMITED";
    /// The source is blocked by the operator.
    Blocked = 0x21, "BLOCKED";
    /// The relay holds as much as it is allowed to.
    Capacity = 0x22, "CAPACITY";
    /// The device holds as many allocations as it is allowed to.
    DeviceLimit = 0x23, "DEVICE_LIMIT";
    /// The token's or the allocation's time is over.
    Expired = 0x30, "EXPIRED";
    /// The quota is used up; final for this allocation.
    QuotaExceeded = 0x31, "QUOTA_EXCEEDED";
    /// Nothing was heard from the connection for the idle timeout.
    Idle = 0x32, "IDLE";
    /// The other side never came.
    PairTimeout = 0x33, "PAIR_TIMEOUT";
    /// The other side left and did not come back in time.
    PeerGone = 0x34, "PEER_GONE";
    /// One side released the allocation; final.
    Released = 0x35, "RELEASED";
    /// An administrator ended the allocation; final.
    Killed = 0x36, "KILLED";
    /// Newer connections of the same role took this one's place.
    Replaced = 0x37, "REPLACED";
    /// Another relay owns the allocation; the message names it.
    Moved = 0x40, "MOVED";
    /// The relay is about to stop.
    Draining = 0x41, "DRAINING";
    /// Something the relay needs is out of reach.
    Unavailable = 0x42, "UNAVAILABLE";
    /// The relay's own fault.
    Internal = 0x50, "INTERNAL";
}

impl CloseCode {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Whether a client should try again with the same token; every other code is final.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Capacity
                | Self::Draining
                | Self::Moved
                | Self::Unavailable
                | Self::Internal
        )
    }

    /// Whether the allocation's identity stays refused after an end with this code.
    pub const fn is_final_for_allocation(self) -> bool {
        matches!(self, Self::Released | Self::Killed | Self::QuotaExceeded)
    }

    /// The RESET or STOP_SENDING code of a stream that the relay itself gave up for this reason.
    pub const fn reset_code(self) -> u64 {
        RESET_BASE + self.number() as u64
    }

    /// The reason in a RESET or STOP_SENDING code, when it was the relay that made it.
    pub const fn from_reset_code(code: u64) -> Option<Self> {
        match code.checked_sub(RESET_BASE) {
            Some(number) => Self::from_number(number),
            None => None,
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_come_back() {
        assert_eq!(CloseCode::ALL.len(), 23);
        assert!(CloseCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(code.number().into()), Some(*code));
            assert_eq!(code.to_string(), code.name());
        }
        let known = (0..=0xffff).filter_map(CloseCode::from_number).collect::<Vec<_>>();
        assert_eq!(known, CloseCode::ALL);
    }

    #[test]
    fn other_numbers_are_no_codes() {
        for number in [0x03, 0x0f, 0x14, 0x24, 0x38, 0x43, 0x51, 0x100, 0x110, 1 << 32, u64::MAX] {
            assert_eq!(CloseCode::from_number(number), None, "{number:#x}");
        }
    }

    #[test]
    fn six_codes_are_tried_again() {
        let again: Vec<_> =
            CloseCode::ALL.iter().filter(|code| code.is_retryable()).map(|c| c.name()).collect();
        let expected = ["RATE_LIMITED", "CAPACITY", "MOVED", "DRAINING", "UNAVAILABLE", "INTERNAL"];
        assert_eq!(again, expected);
    }

    #[test]
    fn three_codes_are_final_for_the_allocation() {
        let last: Vec<_> = CloseCode::ALL.iter().filter(|code| code.is_final_for_allocation()).collect();
        assert_eq!(last, [&CloseCode::QuotaExceeded, &CloseCode::Released, &CloseCode::Killed]);
    }

    #[test]
    fn resets_by_the_relay_are_told_from_those_of_the_other_side() {
        assert_eq!(CloseCode::Closed.reset_code(), 0x7a72_0000);
        assert_eq!(CloseCode::Internal.reset_code(), 0x7a72_0050);
        for code in CloseCode::ALL {
            assert_eq!(code.reset_code(), 0x7a72_0000 + u64::from(code.number()));
            assert_eq!(CloseCode::from_reset_code(code.reset_code()), Some(*code));
        }
        for foreign in [0, 0x10, 0x7a71_ffff, 0x7a72_0003, 0x7a72_0100, 0x7a73_0000, 1 << 33, u64::MAX] {
            assert_eq!(CloseCode::from_reset_code(foreign), None, "{foreign:#x}");
        }
    }
}
