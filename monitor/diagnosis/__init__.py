"""Whether this machine is fit to run ckptwatch: one file a subject; each looks, changes nothing, says how to mend."""
