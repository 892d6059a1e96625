//! FedPipe: model.
