"""The recipe of the mini model: `PYTHONPATH=tools python -m train_mini` in the repository's root.

The training is in stages, so that quantizing the UNet hurts as it does in the real model (errors of
eps are amplified 14.6 times into x0, and the decoder was never trained to hide them):

1. `autoencoder`: the VAE alone on HR crops, L1 + LPIPS + KL; then the decoder is frozen and
   scaling_factor is set so that latents have unit variance.
2. `latent`: the UNet alone, on latents: first towards x0 = z (identity, eps = 0.934 z), then
   towards the HR latent, MSE in x0 space. Cheap, no decoder in the loop.
3. `sr`, `sr_decay`: UNet and encoder together, L1 + LPIPS on the image behind the frozen decoder;
   first at the peak learning rate, then a cosine to 1 % of it.
4. `sr_balance`, `sr_fidelity`: less LPIPS (0.12, then 0.03) and an L1 on 8 x 8 pixel means, which
   trade perception back for fidelity and hold the colours.
5. `sr_large`: the same on 256 px crops, the size of the test images. Normalisation statistics and
   attention depend on the size: trained on 64 px alone, the model darkens larger images by several
   levels.
6. `colour_autoencoder`: the VAE again, on crops of varied colours: the decoder of the first pass
   could not express saturated reds and violets, and what the decoder cannot express no later
   training can repair. It helped little: two pairs of latent channels were nearly copies of each
   other, and none carried red - green.
7. `chroma_*`: so the last two latent channels are first taught the chroma (`anchor`), which frees
   the decoder from guessing it; then the path of 2 to 5 once more, shorter, on larger crops.

Every batch depends only on (seed, stage, step), so a killed run resumes from its last checkpoint
exactly where it was. Curves go to <work>/curves.csv.

Modules: recipe (the stages and the model), data (photographs and batches), losses, run (the
resumable training), publish (the finished model folder). See models/mini/README.md.
"""
