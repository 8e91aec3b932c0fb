"""Edits of an image that are likely under what a diffusion model learned.

`editor.Editor` makes them as a profile's ``sampler`` says, in the space that the denoiser works in:
pixels, or the latents of an autoencoder (`spaces`). What it is made of:

- `denoisers`: from a noisy sample to the clean one behind it, E[x_0 | x_t], on a `schedule`;
- `samplers`: from noise or the noised input to an edit, asking the denoiser step by step;
- `similarity`: kernels, log r_sim(x, x_in), that say how alike an edit and the input are;
- `guidance`: how a sampler follows such a kernel.

Samplers, guidances and kernels are parts: each a frozen dataclass that its own file registers, in
this package or outside of it. `gaussian` has data for which all is known in closed form.
"""
