//! TLS: certificates from PEM files, read again when they are renewed.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};

/// The files that say who we are, and whom we answer.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// Our certificate, and those between it and its root.
    pub(super) certificates: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
    /// Who has to have signed the certificates of clients.
    pub(super) clients: Option<PathBuf>,
}

impl Files {
    /// When each was written last: what has changed is read again.
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let files = [Some(&self.certificates), Some(&self.key), self.clients.as_ref()];
        let written = |file: &PathBuf| fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
        files.into_iter().flatten().map(written).collect()
    }

    fn read(&self) -> Result<TlsAcceptor> {
        let certificates = certificates(&self.certificates)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| anyhow::anyhow!("cannot read a key from {}: {error}", self.key.display()))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("TLS cannot be set up")?;
        let builder = match &self.clients {
            Some(file) => builder.with_client_cert_verifier(clients(file, provider)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(certificates, key).with_context(|| {
            format!("{} and {} do not belong together", self.certificates.display(), self.key.display())
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>> {
    let refused = || format!("cannot read certificates from {}", file.display());
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(refused)?;
    if certificates.is_empty() {
        bail!("{}: there is none", refused());
    }
    Ok(certificates)
}

/// Accepts what one of these has signed.
fn clients(file: &PathBuf, provider: Arc<crypto::CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .with_context(|| format!("{} has a certificate that signs nothing", file.display()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .with_context(|| format!("clients cannot be told by {}", file.display()))
}

/// What shakes hands with clients, by the files as they are.
pub(super) struct Tls {
    files: Files,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    stamps: Vec<Option<SystemTime>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is not what it should be.
    pub(super) fn new(files: Files) -> Result<Self> {
        let stamps = files.stamps();
        let acceptor = files.read()?;
        Ok(Self { files, state: Mutex::new(State { acceptor, stamps }) })
    }

    /// Whether clients have to have a certificate.
    pub(super) fn asks_clients(&self) -> bool {
        self.files.clients.is_some()
    }

    /// For the next client.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).acceptor.clone()
    }

    /// Reads the files again if they were renewed.
    ///
    /// # Errors
    /// Why the new ones are of no use; the old ones stay.
    pub(super) fn refresh(&self) -> Result<()> {
        let stamps = self.files.stamps();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != state.stamps {
            // Told once for each change.
            state.stamps = stamps;
            state.acceptor = self.files.read().context("the renewed certificate is not used")?;
        }
        Ok(())
    }
}
