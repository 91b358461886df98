//! A pair over a TCP proxy that ends TLS on both sides: the device connects to the proxy, the proxy to the peer.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::records::End;

type Stream = TlsStream<TcpStream>;
/// One side of a pair.
pub type TlsEnd = End<WriteHalf<Stream>, ReadHalf<Stream>>;

/// Both ends' settings, and who waits for whom.
pub struct Proxied {
    proxy: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    /// The peers that have not arrived, by the number of their pair.
    expected: Mutex<HashMap<u32, oneshot::Sender<Stream>>>,
}

impl Proxied {
    /// Listens for the proxy at `backend`; both ends show and trust the certificate in this PEM file, key included.
    pub async fn listen(
        proxy: SocketAddr,
        backend: SocketAddr,
        certificate: &Path,
    ) -> anyhow::Result<Arc<Self>> {
        let leaf = CertificateDer::from_pem_reader(BufReader::new(File::open(certificate)?))?;
        let key = PrivateKeyDer::from_pem_reader(BufReader::new(File::open(certificate)?))?;
        let mut roots = RootCertStore::empty();
        roots.add(leaf.clone())?;
        // The suite that quinn and the relay agree on.
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..aws_lc_rs::default_provider()
        });
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each client is another program's.
        client.resumption = Resumption::disabled();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)?;
        let listener = TcpListener::bind(backend).await?;
        let proxied = Arc::new(Self {
            proxy,
            name: ServerName::try_from("localhost")?,
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
            expected: Mutex::default(),
        });
        tokio::spawn(proxied.clone().accept(listener));
        Ok(proxied)
    }

    /// One side through the proxy, and the other as the proxy's server.
    pub async fn pair(&self, number: u32) -> anyhow::Result<[TlsEnd; 2]> {
        let (arrived, peer) = oneshot::channel();
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(number, arrived);
        let stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        let mut device =
            self.connector.connect(self.name.clone(), stream).await.context("the proxy's TLS")?;
        device.write_u32(number).await?;
        device.flush().await?;
        Ok([end(TlsStream::from(device)), end(peer.await.context("the proxy did not connect the peer")?)])
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let this = self.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut peer = this.acceptor.accept(stream).await?;
                let number = peer.read_u32().await?;
                let expected = this.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                if let Some(expected) = expected {
                    // Who expected it may have given up.
                    let _ = expected.send(TlsStream::from(peer));
                }
                io::Result::Ok(())
            });
        }
    }
}

fn end(stream: Stream) -> TlsEnd {
    let (recv, send) = split(stream);
    End { send, recv }
}
