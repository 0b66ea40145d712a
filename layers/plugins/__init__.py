"""Layer types that Caffe lacks, built on the same contract, with no privileges."""
