//! What lies between the pool and a peer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use rand::RngExt;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
    split,
};
use tokio::time::sleep;

use super::{Open, World, ms, one_of};

/// The pool's end.
#[derive(Debug)]
pub struct Socket {
    stream: DuplexStream,
    _open: Open,
}

impl Socket {
    pub fn new(stream: DuplexStream, open: Open) -> Self {
        Self {
            stream,
            _open: open,
        }
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Both ways, at once.
    Reset,
    /// Both ways, after a silence.
    Hang,
    /// This way only.
    Close,
}

/// Carries bytes both ways until one of them is cut.
pub async fn carry(world: Arc<World>, near: DuplexStream, far: DuplexStream) {
    let (from_near, to_near) = split(near);
    let (from_far, to_far) = split(far);
    let mut out = Box::pin(one_way(&world, from_near, to_far));
    let mut back = Box::pin(one_way(&world, from_far, to_near));
    let cut = tokio::select! {
        biased;
        cut = &mut out => match cut {
            None => back.await,
            cut => cut,
        },
        cut = &mut back => match cut {
            None => out.await,
            cut => cut,
        },
    };
    world.log(format_args!("the network ends it: {cut:?}"));
    if let Some(Cut::Hang) = cut {
        sleep(ms(20_000)).await;
    }
}

/// How it was cut, or none where it came to its end.
async fn one_way(
    world: &World,
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
) -> Option<Cut> {
    let cut = world.fails(0.3).then(|| {
        world.draw(|rng| {
            let after = one_of(rng, &[0, 10, 300, 1000, 20_000]) + rng.random_range(0..200);
            (after, one_of(rng, &[Cut::Reset, Cut::Hang, Cut::Close]))
        })
    });
    let slow = world.fails(0.7);
    let mut carried = 0;
    let mut buffer = vec![0; world.draw(|rng| one_of(rng, &[50, 2000, 1 << 16]))];
    loop {
        let count = from.read(&mut buffer).await.ok()?;
        if count == 0 {
            let _ = to.shutdown().await;
            return None;
        }
        if slow && !world.is_calm() {
            sleep(world.draw(|rng| ms(one_of(rng, &[0, 0, 0, 10, 40])))).await;
        }
        let mut bytes = &buffer[..count];
        let cut = cut.filter(|(after, _)| carried + count >= *after && !world.is_calm());
        if let Some((after, _)) = cut {
            bytes = &bytes[..after - carried];
        }
        let written = to.write_all(bytes).await;
        carried += count;
        match cut {
            Some((_, Cut::Close)) => {
                let _ = to.shutdown().await;
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
                return None;
            }
            Some((_, cut)) => return Some(cut),
            // Nobody reads it any more.
            None if written.is_err() => return None,
            None => {}
        }
    }
}
