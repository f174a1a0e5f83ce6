//! The meeting protocol: how members of a group find each other at a relay.
//!
//! A peer sends an opaque tag of its group; the relay remembers that this peer is there while it is
//! connected, and answers with the others that sent the same tag. Whoever does not know a tag can
//! not ask for it, and there is no way to list tags. Addresses are not exchanged: members reach
//! each other through the relay, and learn each other's addresses from each other.
//!
//! ```text
//! request   version u8 = 1 | tag, 32 bytes
//! answer    status u8 | seconds until to ask again u32 | count u16 | count × (length u8, peer id)
//! ```

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{
    PeerId, StreamProtocol,
    request_response::{self, ProtocolSupport},
};

/// The name of the protocol.
pub const MEET_PROTOCOL: StreamProtocol = StreamProtocol::new("/wavesync-meet/1");
/// Length of a tag.
pub const MEET_TAG_BYTES: usize = 32;
/// Members that one answer names.
pub const MEET_MEMBERS_MAX: usize = 64;

const VERSION: u8 = 1;
/// The longest peer id of any key type.
const PEER_ID_MAX_BYTES: usize = 64;
const STATUS_HERE: u8 = 0;
const STATUS_FULL: u8 = 1;

/// "I am here": the tag of a group at this relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meet(pub [u8; MEET_TAG_BYTES]);

/// Who else is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// The relay remembers us. Otherwise it has no room, and names nobody.
    pub remembered: bool,
    /// After this long the relay wants to hear from us again.
    pub again_seconds: u32,
    /// Others with the same tag, some of them if there are many.
    pub members: Vec<PeerId>,
}

/// The behaviour of either side.
pub type MeetBehaviour = request_response::Behaviour<MeetCodec>;
/// What it tells.
pub type MeetEvent = request_response::Event<Meet, Met>;

/// The behaviour of a peer (`asks`) or of a relay.
pub fn meeting(asks: bool) -> MeetBehaviour {
    let support = if asks { ProtocolSupport::Outbound } else { ProtocolSupport::Inbound };
    request_response::Behaviour::new(
        [(MEET_PROTOCOL, support)],
        request_response::Config::default(),
    )
}

/// Requests and answers as bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeetCodec;

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

impl request_response::Codec for MeetCodec {
    type Protocol = StreamProtocol;
    type Request = Meet;
    type Response = Met;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Meet>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut version = [0];
        io.read_exact(&mut version).await?;
        if version != [VERSION] {
            return Err(invalid("another version of the meeting protocol"));
        }
        let mut tag = [0; MEET_TAG_BYTES];
        io.read_exact(&mut tag).await?;
        Ok(Meet(tag))
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Met>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut head = [0; 7];
        io.read_exact(&mut head).await?;
        let again_seconds = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let count = usize::from(u16::from_be_bytes([head[5], head[6]]));
        if count > MEET_MEMBERS_MAX {
            return Err(invalid("too many members in one answer"));
        }
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let mut length = [0];
            io.read_exact(&mut length).await?;
            let mut bytes = vec![0; usize::from(length[0]).min(PEER_ID_MAX_BYTES)];
            io.read_exact(&mut bytes).await?;
            members.push(PeerId::from_bytes(&bytes).map_err(|_| invalid("not a peer id"))?);
        }
        Ok(Met { remembered: head[0] == STATUS_HERE, again_seconds, members })
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        Meet(tag): Meet,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&tag);
        io.write_all(&bytes).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        met: Met,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let mut bytes = vec![if met.remembered { STATUS_HERE } else { STATUS_FULL }];
        bytes.extend_from_slice(&met.again_seconds.to_be_bytes());
        let members = &met.members[..met.members.len().min(MEET_MEMBERS_MAX)];
        bytes.extend_from_slice(&(members.len() as u16).to_be_bytes());
        for peer in members {
            let peer = peer.to_bytes();
            bytes.push(peer.len() as u8);
            bytes.extend_from_slice(&peer);
        }
        io.write_all(&bytes).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::{executor::block_on, io::Cursor};
    use libp2p::request_response::Codec;

    use super::*;

    fn answer(bytes: &[u8]) -> io::Result<Met> {
        block_on(MeetCodec.read_response(&MEET_PROTOCOL, &mut Cursor::new(bytes)))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let meet = Meet([7; MEET_TAG_BYTES]);
        block_on(MeetCodec.write_request(&MEET_PROTOCOL, &mut bytes, meet)).unwrap();
        let read = block_on(MeetCodec.read_request(&MEET_PROTOCOL, &mut Cursor::new(&bytes)));
        assert_eq!(read.unwrap(), meet);
        for count in [0, 1, MEET_MEMBERS_MAX] {
            let members = (0..count).map(|_| PeerId::random()).collect();
            let met = Met { remembered: true, again_seconds: 60, members };
            let mut bytes = Vec::new();
            block_on(MeetCodec.write_response(&MEET_PROTOCOL, &mut bytes, met.clone())).unwrap();
            assert_eq!(answer(&bytes).unwrap(), met);
            assert!((0..bytes.len()).all(|cut| answer(&bytes[..cut]).is_err()));
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(answer(&[0, 0, 0, 0, 1, 0xff, 0xff]).is_err());
        assert!(answer(&[0, 0, 0, 0, 1, 0, 1, 3, 1, 2, 3]).is_err());
        let mut old = Cursor::new([9; 40]);
        assert!(block_on(MeetCodec.read_request(&MEET_PROTOCOL, &mut old)).is_err());
    }
}
