"""The closed world of names: those under which transformers and timm have their nn.Linear and
convolutions, in all their architectures.
"""

#: Names of modules by the axes of their weights; numbers are N, and of a name that says little the
#: one above it is there too.
_LINEAR = """
EncDecAttention.k EncDecAttention.o EncDecAttention.q EncDecAttention.v LocalSelfAttention.k
LocalSelfAttention.o LocalSelfAttention.q LocalSelfAttention.v SelfAttention.k SelfAttention.o
SelfAttention.q SelfAttention.v W_down W_up Wi Wk Wo Wq Wqkv Wv a_proj acoustic_linear_1
acoustic_linear_2 action_in_proj action_out_proj action_time_mlp_in action_time_mlp_out adaln_proj
altup_projections.N att_proj attention.output attention.post attention.query attention.receptance
attention_out attention_weights attn.attn attn.final attn.k attn.kv attn.o attn.q attn.qk
attn.to_query attn.v attn_in.qk attn_in.v attn_out attn_out.qk attn_out.v attn_sink_proj
audio_enc_to_dec_proj audio_encoder.output audio_latent_proj audio_lm_head audio_prompt_proj
aux_head b_proj bbox_projection box_fc box_head.layer1 box_head.layer2 box_head.layer3
boxes_direct_project bpe_head char_head class_predictor classif classifier classifier.N
cls_classifier codec_head cond_proj conv_out conv_out_layer cpb_mlp.N ctc_head ctc_proj data_proj
decoder_dict.attr decoder_dict.feat decoder_dict.obj decoder_order_head.N decoder_pred
decoder_projector decoder_roor_order_head.N dense dense0 dense1 dense2 dense_0 dense_1 dense_4h_to_h
dense_h_to_4h dense_in dense_out dense_prediction depth_head dist_head distillation_classifier
down_proj down_proj_for_speech down_proj_for_vision_speech dt_proj duration_delta_proj e_mhsa.k
e_mhsa.q e_mhsa.v embed_out embedding_hidden_mapping_in embedding_proj_layer embedding_projection
enc_output enc_score_head enc_to_dec_proj encoder.patcher encoder_attn_text.query
encoder_decoder_proj encoder_proj encoder_projector encoder_to_decoder end_classifier eos_head
experts.N.w1 experts.N.w2 experts.N.w3 f_a_proj f_b_proj f_proj fc fc0 fc1 fc11 fc12 fc1_g fc1_x fc2
fc3 fc_encoder fc_in fc_out feat_out feature_projection feed_forward.output feed_forward.receptance
feed_forward.w1 feed_forward.w2 feed_forward.w3 ff.layer_1 ff.layer_2 ff0 ff1 ff_out ff_proj ffn
ffn.N ffn.w3 ffn_output ffw_layer_1 ffw_layer_2 final_proj final_projection first_hidden_to_hidden
g_a_proj g_b_proj g_proj gate_attn gate_proj gate_up_proj gate_up_proj_adapter_list.N.N gqkv_proj
head head.N head.decoder head.k head.l head.q head.v head_dist head_dist.l head_linear heads.N
hidden_to_hidden high_res_vision_proj horizon_ff_layer.input_layer horizon_ff_layer.residual_layer
image_projection image_projector.w1 image_projector.w2 image_projector.w3 image_to_mm_projection
img_projection_down img_projection_up in_proj in_proj_a in_proj_b in_proj_ba in_proj_qkv
in_proj_qkvz in_proj_z input_ff_layer.input_layer input_ff_layer.residual_layer input_linear
input_proj input_proj_linear input_to_hidden intermediate intermediate_dense itm_head k_head k_lin
k_proj key key_global key_net key_proj key_protein kv_a_proj_with_mqa kv_b_proj kv_proj
label_features_projection language_projection last_linear layout_key layout_query layout_value lin1
lin2 linear linear1 linear2 linear_0 linear_1 linear_10 linear_11 linear_12 linear_13 linear_14
linear_15 linear_16 linear_17 linear_18 linear_19 linear_2 linear_20 linear_21 linear_22 linear_23
linear_3 linear_4 linear_5 linear_6 linear_7 linear_8 linear_9 linear_end linear_fc1 linear_fc2
linear_gate linear_hidden linear_in linear_k linear_left linear_out linear_pos linear_q linear_right
linear_start linear_v linear_x linear_y lm_head lm_head.decoder lm_heads.N logit_fc.N logits_dense
logits_proj match_assignment_layers.N.matchability merge_linear_1 merge_linear_2 merging_layer
message_fc mim_head.decoder mlm_head.decoder mlp mlp.N mlp.layer0 mlp.w0 mlp.w1 mlp.w2 mlp1.N
mlp_fc2 mlstm_layer.k mlstm_layer.q mlstm_layer.v mmm_image_head.decoder mmm_text_head.decoder
modality_projection multi_modal_projector multimodal_projector noisy_images_proj normals_head
num_speakers_proj o_a_proj o_b_proj o_proj out out_eos out_lin out_mid out_proj out_projection
out_text_proj out_vision_proj output_dense output_layer output_linear output_proj output_projection
output_projection_point.input_layer output_projection_point.residual_layer
output_projection_quantiles.input_layer output_projection_quantiles.residual_layer patch_embedding
patch_projection patchifier per_layer_input_gate per_layer_model_projection per_layer_projection
pointwise_conv pointwise_conv1 pointwise_conv2 pointwise_lin1 pointwise_lin2 pooler pos_proj
post_expert_proj post_proj pre_classifier pre_classifier.N pre_expert_proj predict_action.N
predict_return predict_state prediction_coefs predictions.decoder presence_head.layer1
presence_head.layer2 presence_head.layer3 prob_out proj proj.N proj1 proj2 proj_down proj_in proj_l
proj_out proj_up proj_up_gate proj_w project_hid project_in project_k project_out project_q
project_v projection projection_in projection_key projection_layer projection_out projection_query
projection_value projector projector.layers projs.N.N protein_projector pwconv1 pwconv2 q_a_proj
q_b_proj q_gate_proj q_head q_lin q_proj qa_outputs qkv qkv_proj query_global query_key_value
query_net query_proj r_proj readout_projects.N readout_projects.N.N reduction ref_point_head.layer1
ref_point_head.layer2 relative_k_proj revert_projs.N.N sampling_offsets score segmentation_head
self.query self_attn.output self_attn.query semantic_linear_1 semantic_linear_2
sequence_summary.summary shared_experts.w1 shared_experts.w2 shared_experts.w3 shortcut_proj_attn
single_hidden_to_spks sink_proj spatial_linear.N spatial_proj speaker_proj start_classifier
state_proj temporal_dense temporal_linear.N text_mlp.layer1 text_mlp.layer2
text_model.transformation text_proj text_projection text_projection.N text_to_mm_projection
thinker_to_talker_proj time_mlp.N to_k to_key to_kv to_out to_q to_v up_gate_proj up_proj
up_proj_for_speech up_proj_for_vision_speech v_head v_lin v_proj v_proj_current v_proj_delayed value
value_global value_net value_proj value_protein values_text_proj values_vision_proj
video_patch_projection vision_head vision_proj vision_projection vision_projector visn_fc
visual_projection visual_projection.N vit_large_projector w12 w_in w_in.w_0 w_in.w_1 w_out w_qkv
weight_proj weights_proj wgate wi wi_0 wi_1 wk wk_dv wkv wkv_a_with_mqa wkv_b wo wo_a wo_b wo_ud
wp_head wq wq_a wq_b wq_du wqkv wr_du wv wv_dv x_proj
"""
_CONV1D = """
BCdt_proj.conv acoustic_decoder.conv1 acoustic_decoder.conv2 acoustic_encoder.conv1
acoustic_encoder.conv2 asp.conv attn.conv attn_last.conv attn_sconv audio_tower.conv1
audio_tower.conv2 block.N.conv block.N.conv1 blocks.N.conv bottleneck chars_to_molecules.conv
conv.conv conv.up_conv conv1d conv_1d conv_blocks.N.conv conv_layers.N conv_layers.N.conv conv_post
conv_pre conv_proj conv_qk_depthwise conv_qk_grouped convs1.N convs2.N convs_dilated.N
convs_pointwise.N ctc_head dac_encoder.conv1 dac_encoder.conv2 decoder.conv1 decoder.conv2
decoder_semantic.conv1 decoder_semantic.conv2 depth_conv.conv depthwise depthwise_conv
depthwise_conv1d down_conv downsample.conv dur_predictor.conv1 dur_predictor.conv2
duration_predictor.conv1 duration_predictor.conv2 dw_conv encoder.conv1 encoder.conv2 encoder.conv3
encoder_semantic.conv ext_pw_conv_1d feed_forward.conv1 feed_forward.conv2 feed_forward.conv_1
feed_forward.conv_2 feed_forward_macaron.conv1 feed_forward_macaron.conv2 fsmn.conv head.conv
head.conv1 head.conv2 hz_proj.conv in_proj input_conv input_proj k_conv1d k_sconv kernel_conv key
latent_proj layers.N.conv1 layers.N.conv2 mel_conv mfa.conv mixer.conv mlp_sconv out_proj
out_proj.conv output_proj pointwise pointwise_conv1 pointwise_conv2 post_conv_pre post_conv_proj
post_net.N.conv1 post_net.N.conv2 prior_net.N.conv1 prior_net.N.conv2 project projection.conv
pw_conv q_conv1d query res_unitN.conv1 res_unitN.conv2 res_units.N.conv1 res_units.N.conv2
resblocks.N.conv resblocks.N.conv1 resblocks.N.conv2 residual_conv se.conv se_block.conv1
se_block.conv2 self_attn_conv semantic_adapter.conv1 semantic_adapter.conv2 semantic_adapter.conv3
semantic_adapter.conv4 spk_encoder.fc subsampler.conv_0 subsampler.conv_1 tdnn.conv tdnnN.conv
v_conv1d v_sconv value word_timestamp_head
"""
_CONV2D = """
ConvNd_Na_NxN.conv ConvNd_Nb_NxN.conv aggregation.N.conv aggregation.N.convolution attention.fc
attn.N.k attn.N.q attn.N.v attn.conv attn.fc attn.fc1 attn.fc2 attn.proj attn_N.k attn_N.q attn_N.v
attn_last.fc1 attn_last.fc2 attractors.N.conv1 attractors.N.conv2 auxiliary_head.head.N bN.conv1
bN.conv2 bN.conv3 backbone.N.conv base_conv.convolution block.N.conv2 blockN.skip block_N.conv1
block_N.conv2 block_N.id_path blocks.N.N.conv blocks.N.N.fn.N blocks.N.convolution blocks.N.convs.N
blocks.N.mlp.N blocks.input boxes_pool_project branchN.N.conv branchN.conv branchN_N.conv
branchN_Na.conv branchN_Nb.conv branchNxN.conv branchNxN_N.conv branchNxN_Na.conv branchNxN_Nb.conv
branchNxNdbl_N.conv branchNxNdbl_Na.conv branchNxNdbl_Nb.conv branchNxNxN_N.conv branch_pool.conv
branches.N.N.conv1 branches.N.N.conv2 bridge_connector.convolution cNxN_a.conv cNxN_b.conv
cNxN_c.conv cNxN_w_sN.conv channel_block.conv1 channel_block.conv2 channel_convN.convolution
channel_downsample.c channel_projector.N.convolution classifier classifier.convolution
comb_iter_N_right.conv conditional_log_binomial.mlp.N conv.N.conv conv.N.fc1 conv.N.fc2 conv.c
conv.conv conv.convolution conv1_1x1 conv2_kxk conv2d conv2d1 conv2d2 conv2d3 conv3_1x1 convN.c
convN.conv convN.conv1 convN.convolution convN.fc1 convN.fc2 convN_N.conv convN_NxN.conv
convN_kxk.conv convNb_kxk.conv convNd_Na.conv convNd_Nb.conv conv_1x1 conv_N.conv conv_NxN.conv
conv_NxN.convolution conv_NxN_exp.convolution conv_a conv_after_body conv_aspp.convolution conv_attn
conv_b conv_block.N.convolution conv_cb conv_concat.conv conv_cr conv_depth.head.N conv_descriptor_a
conv_descriptor_b conv_down.N.conv conv_down.conv conv_down.convolution conv_dw conv_dw.N
conv_dw.conv conv_exp conv_exp.conv conv_expand conv_final.convolution conv_fusion.conv conv_head
conv_in conv_kxk.N.conv conv_kxk.conv conv_kxk.convolution conv_layers.N conv_mid.N.conv conv_out
conv_p conv_pool.convolution conv_prev_NxN.conv conv_proj.conv conv_proj.conv.N
conv_projection.convolution conv_pw conv_pw.N conv_pwl conv_pwl.N conv_pwl.conv conv_q conv_reduce
conv_reduction.conv conv_s0 conv_s1 conv_score_a conv_score_b conv_small_symmetric.convolution
conv_start.convolution conv_stem conv_stem.conv conv_stem.convolution conv_stem.convs.N
conv_symmetric.N.convolution conv_y convnet_1x1 convolution.convolution
convolution_projection.convolution convolutional_layer1.N convolutional_layer2.N
convolutional_layer3 convolutions.N convs.N.conv convs.N.convolution cpe.proj cpeN.proj
crpe.conv_list.N crpeN.conv_list.N cvN.conv decoder_input_proj.N.N denselayerN.conv1
denselayerN.conv2 depth_conv.conv depth_conv.conv.N depth_head.convs.N depth_wise_conv
depthwise_conv depthwise_conv.conv depthwise_conv2d depthwise_convolution
depthwise_convolution.convolution down_conv downsample downsample.N downsample.N.conv downsample.c
downsample.convolution downsample.down downsample.proj downsample_convs.N.conv downsample_layers.N
downsampler1 downsampler2 dw.conv dw_conv.conv dw_conv_list.N.conv dw_mid.conv dw_start.conv dwconv
dwconv.conv dwconvN.conv dwconv_h dwconv_hw dwconv_w dws.N.conv embedding_layer_N.convolution
embeddings.convolution embeddings.proj encoder_input_proj.N.N encoder_input_proj.N.conv
encoder_mask_lateral.convolution encoder_mask_output.conv expand expand_NxN.convolution expand_conv
fN.conv fcN.conv fc_reduce fc_select feature_projection features.N.conv features.N.conv1.N
features.N.conv2.N features.N.conv3.N features.N.conv4.N features.N.conv5.N features.N.conv6.N
features.conv0 features.conv1 features.conv2 final_conv.conv first_conv.convolution
first_convolution fpn.stem.N fpn_bottleneck.conv fpn_bottleneck.convolution fpn_convs.N.conv
fpn_convs.N.convolution fusion.convolution g.conv grid_encoder_conv group_conv3x3 head.conv
head.conv1 head.conv2 head.conv3 head.convs.N head.fc head.head.N high_res_vision_neck.conv1
high_res_vision_neck.conv2 high_res_vision_proj.conv1 high_res_vision_proj.conv2 horizontal_conv
in_conv in_conv.conv incre_modules.N.N.conv1 incre_modules.N.N.conv2 incre_modules.N.N.conv3
input_proj_vision.N.N input_projection input_projections.N.N instance_projection inverted_conv.conv
k.c k.conv key.proj large_conv.conv last_conv.N last_convolution lateral_convs.N.conv
lateral_convs.N.convolution layer.N.convolution layerN.N.conv1 layerN.N.conv2 layerN.N.conv3
layerN.N.convs.N layerN.conv layerN.conv1 layerN.conv2 layerN.conv3 layers.N.block.N
layers.N.convolution layers.N.fc layers.N.proj.N layers.layers.N linear linear.fc1 linear.fc2
linear_fuse local_conv.conv local_mp.conv1 local_mp.conv2 m.c m.conv main_conv main_conv.conv
main_unit.conv1 main_unit.conv2 mask_conv1 mask_conv2 mask_downsample mask_downsampler.final_conv
mask_projection metric_head.conv2 mid.conv mixer.conv mlp.conv1 mlp.conv2 mlp.conv3 mlp.fc1 mlp.fc2
mlp.main.N mlp_add.fc1 mlp_add.fc2 model.layer.N modulation.f modulation.h modulation.proj
module.N.c module.c multi_modal_projector.conv1 multi_modal_projector.conv2 neck.conv1 neck.conv2
neck.convs.N network.N.proj normals_head.convs.N out_conv out_conv1 out_conv2 out_conv3 out_proj
out_proj.convolution out_projections.N output.conv output.conv1 output.conv2 output.proj
output_conv.convolution partial_conv3 patch_conv patch_embed.N.proj patch_embed.proj patch_embedding
patch_embedding.N patch_embedding.proj patch_embeddings patch_embeddings.N.proj
patch_embeddings.proj patch_embeds.N.proj path.conv_1 path.conv_2 path.conv_3 path.conv_4
path_N.conv paths.N.conv point_conv.conv point_wise_conv1 point_wise_conv2 pointwise pointwise_conv
pointwise_conv.conv pointwise_conv2d pointwise_convolution pointwise_convolution.convolution
pool.conv pool.proj pool_k pool_q pool_v pos_proj post_conv post_quant_conv pre_encode.conv.N
pre_logits.fc1 pre_logits.fc2 primary_conv.N proj.N.c proj.N.conv proj.c proj.conv proj.conv1
proj.conv2 proj1 proj2 proj_conv proj_out project project.N project.convolution project_conv
projection projection.conv projection_context projections.N projectors.N.conv1 projectors.N.conv2
prompt_depth_layer.convolution1 prompt_depth_layer.convolution2 prompt_depth_layer.convolution3
psp_bottleneck.convolution psp_modules.N.N.conv pwN.c pwN.conv pw_conv.N.conv pw_conv.conv
pw_exp.conv pw_proj.conv pwconv1 pwconv2 pwise q.c q.conv q.local q_aggregation qkv qkv.c qkv.conv
qkv_proj qkv_proj.convolution qkvs.N.conv quant_conv query.proj query_input_projection reduce
reduce_NxN.convolution reduction relative_head.conv1 relative_head.conv2 relative_head.conv3
rep.N.conv1 residual_layerN.convolution1 residual_layerN.convolution2 residual_unit.conv1
residual_unit.conv2 resnet_head.N.convolution root.conv se.fc1 se.fc2 se_module.fc1 se_module.fc2
seed_bin_regressor.conv1 seed_bin_regressor.conv2 seed_projector.conv1 seed_projector.conv2
segmentation_head.convs.N self.conv self_attn.kv self_attn.q semantic_projection sequence_reduction
short_conv.N short_conv.conv shortcut.N.convolution shortcut.conv shortcut.convolution
small_conv.conv spatial_block.conv1 spatial_block.conv2 spatial_conv spatial_conv.conv
spatial_conv.conv.N spatial_downsample.c spatial_features_proj spatial_reduction
squeeze_excitation_block.conv1 squeeze_excitation_block.conv2 squeeze_excitation_module.conv1
squeeze_excitation_module.conv2 sr stages.N.conv stages.N.convolution stem.N.conv stem.proj
stemN.conv stemN.convolution stemNa.conv stemNa.convolution stemNb.conv stemNb.convolution
stride_conv.conv subsampling.layers.N talking_head1 talking_head2 top_conv total.N.N.main.N
treeN.conv1 treeN.conv2 treeN.conv3 v.conv v_gate.c v_local.conv value.proj vertical_conv
vision_model.conv1 vit_downsampler1 vit_downsampler2
"""
_CONV3D = """
conv_lambda patch_embedding proj projection
"""
_BY_AXES = {2: _LINEAR, 3: _CONV1D, 4: _CONV2D, 5: _CONV3D}
KNOWN = {axes: frozenset(names.split()) for axes, names in _BY_AXES.items()}
